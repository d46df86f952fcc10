//! The dashboard in a real browser: what it shows of a real server, by the eye, by the keyboard and
//! by a screen reader.

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use serde_json::json;
use std::time::Duration;
use testkit::browser::{Browser, key};
use testkit::load::{Plan, start};
use testkit::{LONG, Server, Setup, skipped, wait_for, wait_until};

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--admin", "127.0.0.2:0"])
}

/// A browser that shows this server's dashboard; `None`, and said, where there is no browser.
fn look(test: &str, server: &Server) -> Option<Browser> {
    let Some(browser) = Browser::start(1280, 900) else {
        skipped(
            test,
            "no chromium with chromedriver (scripts/peers all installs them)",
        );
        return None;
    };
    let admin = wait_for("the admin child", LONG, || {
        Some(
            server.try_status()?["admin"]
                .as_array()?
                .first()?
                .as_str()?
                .to_owned(),
        )
    });
    browser.open(&format!("http://{admin}/"));
    let slots = server.status()["slots"].as_array().map_or(0, Vec::len) as u64;
    wait_until("all slots are shown", LONG, || {
        browser.count("#row .cell") == slots
    });
    Some(browser)
}

/// The page is as it should be: it has logged no error, and contacted only its server.
#[track_caller]
fn assert_sound(browser: &Browser) {
    let mut complaints = browser.console();
    // The admin child says so while a loaded machine lets the supervisor wait; the page asks again.
    complaints.retain(|line| !line.contains("/status") || !line.contains("503"));
    assert_eq!(complaints, Vec::<String>::new());
    let external = browser.run(
        "return performance.getEntriesByType('resource').map(one => one.name)\
         .filter(name => !name.startsWith(location.origin) && !name.startsWith('data:'))",
    );
    assert_eq!(external, json!([]), "other hosts were asked");
}

fn label(browser: &Browser, slot: usize) -> String {
    let script =
        format!("return document.querySelectorAll('.cell')[{slot}].getAttribute('aria-label')");
    browser.run(&script).as_str().unwrap_or_default().to_owned()
}

/// Where the focus is: the text or the name of what has it.
fn focus(browser: &Browser) -> String {
    let script =
        "const it = document.activeElement; return it.getAttribute('aria-label') || it.innerText";
    browser.run(script).as_str().unwrap_or_default().to_owned()
}

/// The texts whose contrast is less than WCAG 2.2, 1.4.3 asks for: 4.5, of large ones 3.
fn faint(browser: &Browser) -> Vec<String> {
    let script = r"
        const parse = colour => (colour.match(/[\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => {
            const [x, y, z] = [r, g, b].map(c => c / 255)
                .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * x + 0.7152 * y + 0.0722 * z;
        };
        const over = (top, below) => {
            const a = top.length > 3 ? top[3] : 1;
            return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a));
        };
        const ground = element => {
            const layers = [];
            for (let at = element; at; at = at.parentElement)
                layers.push(parse(getComputedStyle(at).backgroundColor));
            return layers.reverse().filter(one => one.length > 2)
                .reduce((below, top) => over(top, below), [255, 255, 255]);
        };
        const found = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const text = walker.currentNode.textContent.trim();
            const element = walker.currentNode.parentElement;
            if (!text || !element.getClientRects().length) continue;
            if (element.closest('script, style')) continue;
            const style = getComputedStyle(element), size = parseFloat(style.fontSize);
            if (style.visibility !== 'visible') continue;
            const below = ground(element);
            const colour = element instanceof SVGElement ? style.fill : style.color;
            const ink = over(parse(colour), below);
            const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            const large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
            if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
        }
        return found;";
    let found = browser.run(script);
    let texts = found.as_array().expect("a list").iter();
    texts
        .map(|text| text.as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_server_is_shown_slot_by_slot_with_its_load() {
    let server = setup().workers(4).args(["--name", "shop"]).start();
    let Some(browser) = look("a_server_is_shown_slot_by_slot_with_its_load", &server) else {
        return;
    };
    assert_eq!(browser.text("h1"), "shop");
    assert!(
        browser
            .text("#facts")
            .contains(&server.address().to_string()),
        "{}",
        browser.text("#facts")
    );
    wait_until("the state", LONG, || {
        browser.text("#state").ends_with("serving")
    });
    let load = start(Plan::kept_alive(&server.address(), 4).http("/", None));
    wait_until("requests are counted", LONG, || {
        let value = browser.text("#figures .figure:first-child .value");
        value.starts_with(|digit: char| digit.is_ascii_digit() && digit != '0')
    });
    wait_until("a worker is busy", LONG, || {
        browser.count(".w[data-s=busy]") > 0
    });
    wait_until("latencies are known", LONG, || {
        browser.text("#bars").contains("p99")
    });
    wait_until("events are told", LONG, || {
        browser
            .text("#events")
            .contains("4 workers of generation 1 serve")
    });
    assert!(
        label(&browser, 3).starts_with("Slot 3: "),
        "{}",
        label(&browser, 3)
    );
    browser.run("document.getElementById('as-table').click()");
    wait_until("a table of the same", LONG, || {
        browser.count("#table tbody tr") == 4
    });
    assert_eq!(browser.count("#row:not([hidden])"), 0);
    assert_sound(&browser);
    load.finish().assert_flawless();
}

#[test]
fn it_fits_a_phone_and_both_palettes() {
    let server = setup().workers(12).args(["--bind", "127.0.0.1:0"]).start();
    let Some(browser) = look("it_fits_a_phone_and_both_palettes", &server) else {
        return;
    };
    let paper = "return getComputedStyle(document.body).backgroundColor";
    browser.prefer("prefers-color-scheme", "light");
    let light = browser.run(paper);
    assert_eq!(faint(&browser), Vec::<String>::new());
    browser.prefer("prefers-color-scheme", "dark");
    wait_until("it is dark", LONG, || browser.run(paper) != light);
    assert_eq!(faint(&browser), Vec::<String>::new());
    browser.press(&['d']);
    wait_until("it is light on demand", LONG, || {
        browser.run(paper) == light
    });
    browser.resize(360, 740);
    let too_wide = "return document.documentElement.scrollWidth - innerWidth";
    wait_until("nothing has to be scrolled sideways", LONG, || {
        browser.run(too_wide).as_i64() <= Some(0)
    });
    browser.run("document.querySelectorAll('.cell')[7].click()");
    wait_until("a slot is open", LONG, || {
        browser.text("#detail h3") == "Slot 7"
    });
    assert!(
        browser.run(too_wide).as_i64() <= Some(0),
        "an open slot is too wide"
    );
    assert_sound(&browser);
}

#[test]
fn slots_are_reached_and_opened_by_the_keyboard_and_have_names() {
    let server = setup().workers(3).start();
    let test = "slots_are_reached_and_opened_by_the_keyboard_and_have_names";
    let Some(browser) = look(test, &server) else {
        return;
    };
    browser.press(&[key::TAB]);
    assert_eq!(focus(&browser), "Skip to the slots");
    browser.press(&[key::TAB, key::TAB, key::TAB]);
    assert!(
        focus(&browser).starts_with("Slot 0: "),
        "{}",
        focus(&browser)
    );
    browser.press(&[key::RIGHT]);
    assert!(
        focus(&browser).starts_with("Slot 1: "),
        "{}",
        focus(&browser)
    );
    browser.press(&[key::END, key::RIGHT]);
    assert!(
        focus(&browser).starts_with("Slot 2: "),
        "{}",
        focus(&browser)
    );
    browser.press(&[key::HOME, key::ENTER]);
    assert_eq!(browser.text("#detail h3"), "Slot 0");
    let pid = server.workers()[0].process.0.to_string();
    assert!(
        browser.text("#detail").contains(&pid),
        "{}",
        browser.text("#detail")
    );
    browser.press(&[key::ESCAPE]);
    assert_eq!(browser.count("#detail:not([hidden])"), 0);
    assert!(focus(&browser).starts_with("Slot 0: "), "the focus is lost");

    let (role, name) = browser.accessible(".cell");
    assert_eq!(role, "button");
    assert!(name.starts_with("Slot 0: ready, generation 1"), "{name}");
    let expected = [
        ("main", "main", ""),
        ("#row", "toolbar", "Slots"),
        ("#said", "status", ""),
        ("section[aria-labelledby=events-title]", "region", "Events"),
        (
            "section[aria-labelledby=gens-title]",
            "region",
            "Generations",
        ),
        ("#share", "img", "generation 1: 3 workers"),
        ("#theme", "button", "Dark"),
        ("h1", "heading", "supervisor"),
    ];
    for (selector, role, name) in expected {
        let (found_role, found_name) = browser.accessible(selector);
        // Browsers call a picture by either name.
        assert_eq!(found_role.replace("image", "img"), role, "{selector}");
        assert!(
            name.is_empty() || found_name == name,
            "{selector}: {found_name}"
        );
    }
    assert_sound(&browser);
}

#[test]
fn a_reload_is_seen_while_it_goes_on() {
    let server = setup().workers(2).args(["--min-ready", "6s"]).start();
    let Some(browser) = look("a_reload_is_seen_while_it_goes_on", &server) else {
        return;
    };
    assert!(server.command(&["reload"]).status.success());
    wait_until("two workers in each slot", LONG, || {
        browser.count(".pair .w:nth-child(2)") == 2
    });
    wait_until("all of them are ready", LONG, || {
        browser.text("#trial").contains("2 of 2")
    });
    assert!(
        browser
            .text("#trial")
            .starts_with("Reload: generation 2 is on trial"),
        "{}",
        browser.text("#trial")
    );
    assert!(
        label(&browser, 0).contains("generation 1; and "),
        "{}",
        label(&browser, 0)
    );
    let (role, name) = browser.accessible("#trial [role=progressbar]");
    assert_eq!(
        (role.as_str(), name.as_str()),
        ("progressbar", "Reload: started")
    );
    assert_eq!(
        browser.accessible("#share").1,
        "generation 1: 2 workers, generation 2: 2 workers"
    );
    wait_until("the verdict", LONG, || {
        browser
            .text("#verdict")
            .contains("generation 2 was accepted")
    });
    wait_until("the old ones have left", LONG, || {
        browser.accessible("#share").1 == "generation 2: 2 workers"
    });
    assert_sound(&browser);
}

#[test]
fn a_death_under_load_is_shown_with_its_cause() {
    let server = setup().workers(3).start();
    let Some(browser) = look("a_death_under_load_is_shown_with_its_cause", &server) else {
        return;
    };
    let load = start(Plan::rate(&server.address(), 50.0).http("/", None));
    load.wait_for_more(20);
    server.workers()[1].process.signal(SIGKILL);
    let told = "#events [data-kind=died] strong";
    wait_until("it is told", LONG, || {
        browser
            .text(told)
            .ends_with("slot 1 died: killed by a signal from elsewhere")
    });
    wait_until("its slot shows it", LONG, || {
        browser.count(".cell:nth-child(2)[data-died]") == 1
    });
    assert!(
        label(&browser, 1).ends_with("; a worker died here: killed by a signal from elsewhere")
    );
    wait_until("it is counted", LONG, || {
        browser.text("#causes").starts_with("signal")
    });
    wait_until("another one is there", LONG, || {
        let label = label(&browser, 1);
        label.starts_with("Slot 1: ready") || label.starts_with("Slot 1: busy")
    });
    wait_until("it is said aloud", LONG, || {
        let said = browser.run("return document.getElementById('said').textContent");
        said.as_str()
            .is_some_and(|said| said.contains("slot 1 died"))
    });
    assert_sound(&browser);
    // What the killed worker had in flight may be lost.
    let _ = load.finish();
}

#[test]
fn a_worker_that_does_not_serve_is_seen() {
    let server = setup().workers(2).start();
    let Some(browser) = look("a_worker_that_does_not_serve_is_seen", &server) else {
        return;
    };
    let worker = server.workers()[1].process;
    worker.signal(SIGSTOP);
    wait_until("it is stalled", LONG, || {
        label(&browser, 1).starts_with("Slot 1: stalled")
    });
    assert_eq!(browser.count(".cell:nth-child(2) .w[data-s=stalled]"), 1);
    assert!(
        browser.text("#legend").contains("stalled 1"),
        "{}",
        browser.text("#legend")
    );
    worker.signal(SIGCONT);
    wait_until("it serves again", LONG, || {
        label(&browser, 1).starts_with("Slot 1: ready")
    });
    assert_sound(&browser);
}

#[test]
fn a_server_that_is_gone_is_said_to_be_unreachable() {
    let mut server = setup().workers(2).start();
    let Some(browser) = look("a_server_that_is_gone_is_said_to_be_unreachable", &server) else {
        return;
    };
    assert_sound(&browser);
    assert!(server.command(&["stop"]).status.success());
    server.wait_exit(LONG);
    wait_until("it is said", LONG, || {
        browser.text("#state").ends_with("unreachable")
    });
    wait_until("since when is said", LONG, || {
        let said = browser.text("#lost");
        said.starts_with("The server cannot be reached; last seen ") && said.contains(" s ago")
    });
    assert_eq!(browser.count("main.stale"), 1);
    assert_eq!(
        browser.count("#row .cell"),
        2,
        "what was there is still shown"
    );
}

#[test]
fn markup_in_an_event_is_shown_as_text() {
    let file = |program: &str| format!("workers = 1\nmin-ready = \"100ms\"\n{program}");
    let mut server = setup().config(&file("")).start();
    let Some(browser) = look("markup_in_an_event_is_shown_as_text", &server) else {
        return;
    };
    let evil = "<img src=x onerror=window.hit=1><b>bold</b>";
    server.file(
        "config.toml",
        &file(&format!(
            "command = ['/bin/sh', '-c', \"echo '{evil}' >&2; exit 3\"]\n"
        )),
    );
    assert!(
        !server.command(&["reload", "--wait"]).status.success(),
        "such a reload is refused"
    );
    wait_until("it is shown", LONG, || {
        browser.text("#events").contains(evil)
    });
    wait_until("the verdict", LONG, || {
        browser
            .text("#verdict")
            .contains("generation 2 was refused")
    });
    assert_eq!(browser.count("#events img, #events b, #verdict img"), 0);
    assert!(browser.run("return window.hit").is_null());
    assert_sound(&browser);
    server.wait_until_settled(Duration::from_secs(20));
}
