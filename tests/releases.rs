//! Releases behind a symbolic link: a generation is pinned to the one that it was loaded from, and
//! only a reload follows the link.

use nix::sys::signal::Signal::SIGKILL;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use testkit::load::{Plan, run};
use testkit::releases::Releases;
use testkit::{Server, Setup, skipped};

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
    server.wait_until_settled(testkit::LONG);
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
    server.wait_until_settled(testkit::LONG);
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
