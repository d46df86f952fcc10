//! Releases behind a symbolic link: a generation is pinned to the one that it was loaded from, and
//! only a reload follows the link.

use nix::sys::signal::Signal::SIGKILL;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use testkit::load::{Plan, run};
use testkit::releases::Releases;
use testkit::{Address, LONG, Server, Setup, http, skipped, wait_until};

/// A server of two workers, and its releases: `r1`, which is current, `r2` and `broken`.
fn setup() -> (Setup, Releases) {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--ready", "notify", "--min-ready", "50ms"])
        .args(["--max-unavailable", "100%"]);
    let releases = releases(&setup.path(""));
    (setup, releases)
}

fn releases(root: &Path) -> Releases {
    let releases = Releases::new(root);
    releases.add("r1");
    releases.add("r2");
    releases.add_broken("broken");
    releases.deploy("r1");
    releases
}

/// Python and root, or a visible note that the test was skipped.
fn can_run(test: &str, as_root: bool) -> bool {
    let missing = if !Path::new("/usr/bin/python3").is_file() {
        "there is no /usr/bin/python3"
    } else if as_root && !nix::unistd::geteuid().is_root() {
        "it needs root"
    } else {
        return true;
    };
    skipped(test, missing);
    false
}

/// Asserts that all workers answer with the name of a release.
#[track_caller]
fn all_run(server: &Server, release: &str) {
    let plan = Plan::fresh(&server.address(), 4).http("/", Some(release));
    run(&plan.count(40)).assert_flawless();
}

#[track_caller]
fn reload(server: &Server, succeeds: bool) {
    let output = server.command(&["reload", "--wait"]);
    assert_eq!(output.status.success(), succeeds, "{output:?}");
}

/// Asserts that workers come and go in the release of their generation, whatever the link says.
fn is_pinned(mut server: Server, releases: &Releases) {
    all_run(&server, "r1");
    releases.deploy("broken");
    reload(&server, false);
    for slot in [0, 1] {
        let victim = server.ready()[slot];
        victim.signal(SIGKILL);
        server.wait_for_replacement(slot as u64, victim);
    }
    server.wait_until_settled(LONG);
    all_run(&server, "r1");
    // A good one must wait for its reload, too.
    releases.deploy("r2");
    for slot in ["0", "1"] {
        let output = server.command(&["restart-worker", slot]);
        assert!(output.status.success(), "{output:?}");
    }
    all_run(&server, "r1");
    reload(&server, true);
    all_run(&server, "r2");
    releases.remove("r1");
    let victim = server.ready()[0];
    victim.signal(SIGKILL);
    server.wait_for_replacement(0, victim);
    server.wait_until_settled(LONG);
    all_run(&server, "r2");
}

/// Starts the program of the current release; `current` stands for the link.
fn pinned(test: &str, directory: Option<&str>, words: &[&str]) {
    if !can_run(test, false) {
        return;
    }
    let (setup, releases) = setup();
    let link = releases.current().display().to_string();
    let setup = match directory {
        Some(directory) => setup.args(["--directory", &directory.replace("current", &link)]),
        None => setup,
    };
    let words = words.iter().map(|word| match word.strip_prefix("LINK") {
        Some(rest) => format!("{link}{rest}"),
        None => (*word).to_owned(),
    });
    is_pinned(setup.program(words).start(), &releases);
}

macro_rules! a_generation_is_pinned {
    ($($name:ident: $directory:expr, $words:expr;)+) => {$(
        #[test]
        fn $name() {
            pinned(stringify!($name), $directory, &$words);
        }
    )+};
}

a_generation_is_pinned! {
    pinned_as_an_argument: Some("current"), ["python3", "app.py"];
    pinned_as_an_argument_after_options: Some("current"), ["python3", "-u", "./app.py"];
    pinned_as_a_script: Some("current"), ["./app.py"];
    pinned_as_an_argument_through_the_link: None, ["python3", "LINK/app.py"];
    pinned_as_a_script_through_the_link: None, ["LINK/app.py"];
    pinned_with_its_interpreter_through_the_link: Some("current"), ["LINK/bin/python3", "app.py"];
    pinned_below_the_directory: Some("current/.."), ["current/bin/python3", "current/app.py"];
}

#[test]
fn a_worker_finds_its_release_as_its_directory() {
    if !can_run("directory of a worker", false) {
        return;
    }
    let (setup, releases) = setup();
    let server = setup
        .args(["--directory".into(), releases.current()])
        .program(["./app.py"])
        .start();
    releases.deploy("r2");
    let victim = server.ready()[0];
    victim.signal(SIGKILL);
    let worker = server.wait_for_replacement(0, victim).process;
    let r1 = releases.path("r1");
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", worker.0)).expect("it runs");
    assert_eq!(cwd, r1);
    assert_eq!(worker.variable("PWD").as_deref(), r1.to_str());
    // The script is named by its path, as programs expect it.
    let line = worker.command_line();
    assert!(line.contains(&format!("{}/app.py", r1.display())), "{line}");
}

#[test]
fn a_script_that_was_replaced_in_place_is_still_the_old_one() {
    if !can_run("replaced script", false) {
        return;
    }
    let (setup, releases) = setup();
    let server = setup.program([releases.path("r1").join("app.py")]).start();
    let [good, broken] = ["r1", "broken"].map(|name| releases.path(name).join("app.py"));
    std::fs::rename(&broken, &good).expect("both exist");
    reload(&server, false);
    let victim = server.ready()[0];
    victim.signal(SIGKILL);
    server.wait_for_replacement(0, victim);
    all_run(&server, "r1");
}

#[test]
fn a_sandbox_and_a_user_are_pinned_with_the_release() {
    if !can_run("sandbox and user of a release", true) {
        return;
    }
    let (setup, releases) = setup();
    // Another user must reach the releases.
    let all = Permissions::from_mode(0o711);
    std::fs::set_permissions(setup.path("."), all).expect("our own directory");
    let link = releases.current().display().to_string();
    let server = setup
        .env("PATH", "/usr/bin:/bin")
        .args([
            "--user",
            "65534",
            "--directory",
            &link,
            "--read-only",
            &link,
        ])
        .program(["./app.py"])
        .start();
    is_pinned(server, &releases);
}

/// Static files, in the stock apps' sandbox.
#[test]
fn files_are_those_of_the_release() {
    let setup = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(2)
        .args(["--min-ready", "50ms"]);
    let releases = Releases::new(setup.path(""));
    for release in ["r1", "r2"] {
        std::fs::create_dir(releases.path(release)).expect("a directory of our own");
        std::fs::write(releases.path(release).join("index.html"), release).expect("a file");
    }
    releases.deploy("r1");
    let app = format!("files:{}", releases.current().display());
    let server = setup.args(["--app", &app]).start();
    releases.deploy("r2");
    for slot in [0, 1] {
        let victim = server.ready()[slot];
        victim.signal(SIGKILL);
        server.wait_for_replacement(slot as u64, victim);
    }
    all_run(&server, "r1");
    reload(&server, true);
    all_run(&server, "r2");
}

#[test]
fn a_private_tmp_does_not_hide_the_release() {
    if !can_run("private tmp of a release", true) {
        return;
    }
    let (setup, _) = setup();
    // Not below /tmp, which the workers do not see.
    let elsewhere = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let releases = releases(elsewhere.path());
    let runtime = elsewhere.path().join("run");
    std::fs::create_dir(&runtime).expect("a directory");
    let link = releases.current().display().to_string();
    let server = setup
        .env("XDG_RUNTIME_DIR", runtime)
        .args(["--private-tmp", "on", "--directory", &link])
        .program(["python3", "app.py"])
        .start();
    let worker = server.ready()[0];
    let within = std::process::Command::new("nsenter")
        .args([
            "--target",
            &worker.0.to_string(),
            "--mount",
            "--wd",
            "pwd",
            "-P",
        ])
        .output()
        .expect("nsenter can be run");
    let path = String::from_utf8_lossy(&within.stdout).trim().to_owned();
    assert_eq!(
        Some(path.as_str()),
        releases.path("r1").to_str(),
        "{within:?}"
    );
    is_pinned(server, &releases);
}

/// Asks for `/` until it is told to stop, and returns which release has answered for which
/// generation. A request that fails ends the test.
fn observe(address: &Address, stop: &AtomicBool, answers: &AtomicUsize) -> BTreeSet<(u64, String)> {
    let mut seen = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = http::get(address, "/").expect("no request is lost");
        assert_eq!(answer.status, 200);
        let generation = answer
            .header("x-prefork-generation")
            .expect("its generation");
        let generation = generation.parse().expect("a number");
        seen.insert((generation, answer.body));
        answers.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

/// Tells clients to stop when it is dropped, by a failing assertion, too.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Twenty deployments by symbolic link, every third of them broken, and workers that crash before
/// the switch, between switch and reload, and after it.
#[test]
fn deployments_under_load_lose_nothing_and_run_only_what_was_accepted() {
    if !can_run("deployments under load", false) {
        return;
    }
    let (setup, releases) = setup();
    let mut server = setup
        .args(["--directory".into(), releases.current()])
        .program(["python3", "app.py"])
        .start();
    let address = server.address();
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let crash = || {
        let answer = http::get(&address, "/crash").expect("an answer before the crash");
        assert_eq!(answer.status, 200);
    };
    // What each generation may run.
    let mut accepted = BTreeMap::from([(1, "r1".to_owned())]);
    let seen: BTreeSet<_> = std::thread::scope(|scope| {
        let stopped = Stop(&stop);
        let clients = [(); 4].map(|()| scope.spawn(|| observe(&address, &stop, &answers)));
        for round in 2..22 {
            let name = format!("deploy{round}");
            let good = round % 3 != 0;
            if good {
                releases.add(&name);
            } else {
                releases.add_broken(&name);
            }
            crash();
            releases.deploy(&name);
            crash();
            let before = server.generation();
            let output = server.command(&["reload", "--wait"]);
            assert_eq!(output.status.success(), good, "{output:?}");
            if good {
                accepted.insert(server.generation(), name);
            } else {
                assert_eq!(server.generation(), before);
            }
            crash();
            let answered = answers.load(Ordering::Relaxed);
            wait_until("answers of this round", LONG, || {
                answers.load(Ordering::Relaxed) > answered + 8
            });
        }
        drop(stopped);
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("no request is lost"))
            .collect()
    });
    server.wait_until_settled(LONG);
    let expected: BTreeSet<_> = accepted.into_iter().collect();
    let strange: Vec<_> = seen.difference(&expected).collect();
    assert!(strange.is_empty(), "not accepted: {strange:?}");
    assert!(seen.len() > 10, "most releases have answered: {seen:?}");
}

#[test]
fn a_start_in_a_linked_directory_warns_that_no_reload_follows() {
    if !can_run("a linked directory", false) {
        return;
    }
    for (words, warns) in [
        (["python3", "app.py"], true),
        (["./app.py", "-"], true),
        (["python3", "LINK/app.py"], false),
    ] {
        let (setup, releases) = setup();
        let link = releases.current().display().to_string();
        let words = words.map(|word| word.replace("LINK", &link));
        let enter = format!("cd {link}; exec \"$@\"");
        let server = setup
            .wrapped(["sh", "-c", &enter, "sh"])
            .program(words.clone())
            .start();
        let remedy = format!("start with --directory {link}");
        assert_eq!(server.log().count(&remedy), usize::from(warns), "{words:?}");
    }
}
