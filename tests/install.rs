//! Installation by script and by Debian package, upgrade under load, removal without leftovers, and
//! Debian's own package `supervisor` as a neighbour.
//!
//! Packages are installed under a throw-away systemd, whose root is a copy: see `inside_package`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::load::{Plan, start};
use testkit::unit::{Unit, command, said};
use testkit::{Address, LONG, http, root, skipped, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_supervisor");
const UNIT: Unit = Unit("prefork.service");

fn script(name: &str, words: &[&str]) -> Output {
    let mut script = Command::new(root().join("scripts").join(name));
    script
        .args(words)
        .env_remove("DESTDIR")
        .output()
        .expect("it can be run")
}

#[track_caller]
fn install(destination: &Path, words: &[&str]) -> Output {
    let destination = format!("--destdir={}", destination.display());
    let binary = format!("--binary={BINARY}");
    let output = script(
        "install",
        &[&[destination.as_str(), &binary], words].concat(),
    );
    assert!(output.status.success(), "{output:?}");
    output
}

/// The script that fetches Debian's package `supervisor`.
const SUPERVISORD: &str = "debian-supervisor";
const MANUAL: &str = "/usr/share/man/man8/supervisor.8.gz";
/// Our package, where that test puts it.
const OURS: &str = "prefork.deb";

/// All files below a directory, relative to it.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).expect("it can be read").flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else {
                let path = path.strip_prefix(directory).expect("it lies in there");
                found.insert(path.display().to_string());
            }
        }
    }
    found
}

fn empty(directory: &Path) -> bool {
    std::fs::read_dir(directory)
        .expect("it can be read")
        .next()
        .is_none()
}

/// What an installation puts under its prefix, documents aside.
const FILES: [&str; 7] = [
    "bin/supervisor",
    "share/bash-completion/completions/supervisor",
    "share/zsh/site-functions/_supervisor",
    "share/fish/vendor_completions.d/supervisor.fish",
    "share/man/man8/supervisor.8",
    "share/doc/prefork/examples/loosen.conf",
    "share/prefork/manifest",
];

fn without_documents(files: BTreeSet<String>) -> BTreeSet<String> {
    files
        .into_iter()
        .filter(|file| !file.contains("/doc/") || file.ends_with("loosen.conf"))
        .collect()
}

#[test]
fn an_installation_has_these_files_and_leaves_none_when_it_goes() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    let output = install(here, &[]);
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "it is quiet: {output:?}"
    );
    let mut expected: BTreeSet<String> = FILES
        .iter()
        .map(|file| format!("usr/local/{file}"))
        .collect();
    for unit in ["prefork.service", "prefork@.service"] {
        expected.insert(format!("usr/local/lib/systemd/system/{unit}"));
    }
    expected.insert("etc/prefork/config.toml".to_owned());
    let there = files(here);
    assert!(
        there
            .iter()
            .any(|file| file == "usr/local/share/doc/prefork/README.md"),
        "{there:?}"
    );
    assert_eq!(without_documents(there.clone()), expected);
    // Once more changes nothing.
    install(here, &[]);
    assert_eq!(files(here), there);
    install(here, &["--uninstall"]);
    assert!(empty(here), "{:?}", files(here));
}

#[test]
fn links_in_installed_documents_lead_to_installed_files() {
    let directory = tempfile::tempdir().expect("a directory");
    install(directory.path(), &[]);
    let documents = directory.path().join("usr/local/share/doc/prefork");
    let mut seen = 0;
    for name in files(&documents) {
        let path = documents.join(&name);
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let is_markdown = path.extension() == Some(OsStr::new("md"));
        let links = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
        for link in links.filter(|_| is_markdown) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            let file = path.parent().expect("a directory").join(target);
            assert!(file.exists(), "{name}: {target}");
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} links found");
}

#[test]
fn the_example_configuration_is_right_and_the_units_name_what_was_installed() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    install(here, &["--prefix", "/opt/prefork", "--sysconfdir=/opt/etc"]);
    let config = here.join("opt/etc/prefork/config.toml");
    let check = Command::new(here.join("opt/prefork/bin/supervisor"))
        .args([
            OsStr::new("check"),
            OsStr::new("--config"),
            config.as_os_str(),
        ])
        .output()
        .expect("it runs");
    let remarks = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(
        check.status.success()
            && remarks
                .lines()
                .all(|line| line.starts_with("not checked: ")),
        "{check:?}"
    );
    for (unit, file) in [
        ("prefork.service", "config.toml"),
        ("prefork@.service", "%i.toml"),
    ] {
        let text = std::fs::read_to_string(here.join("etc/systemd/system").join(unit))
            .expect("the unit is there");
        let start =
            format!("ExecStart=/opt/prefork/bin/supervisor --config /opt/etc/prefork/{file}\n");
        assert!(text.contains(&start), "{text}");
        assert!(
            text.contains("ExecReload=/opt/prefork/bin/supervisor reload --wait\n"),
            "{text}"
        );
        assert!(
            !text.contains("/usr/local/") && !text.contains("=/etc/prefork"),
            "{text}"
        );
    }
    install(here, &["--uninstall", "--prefix=/opt/prefork"]);
    assert!(empty(here), "{:?}", files(here));
}

#[test]
fn a_configuration_of_the_operator_is_neither_overwritten_nor_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = directory.path();
    let config = here.join("etc/prefork/config.toml");
    // One that was there before.
    std::fs::create_dir_all(config.parent().expect("a directory")).expect("made");
    std::fs::write(&config, "workers = 3\n").expect("written");
    install(here, &["--no-systemd"]);
    assert!(!files(here).iter().any(|file| file.ends_with(".service")));
    install(here, &["--uninstall"]);
    assert_eq!(
        files(here),
        BTreeSet::from(["etc/prefork/config.toml".to_owned()])
    );
    assert_eq!(
        std::fs::read_to_string(&config).expect("it is there"),
        "workers = 3\n"
    );
    std::fs::remove_dir_all(here.join("etc")).expect("removed");
    // The same holds for a changed example.
    install(here, &[]);
    std::fs::write(&config, "workers = 4\n").expect("written");
    std::fs::write(config.with_file_name("shop.toml"), "workers = 5\n").expect("written");
    install(here, &[]);
    assert_eq!(
        std::fs::read_to_string(&config).expect("it is there"),
        "workers = 4\n"
    );
    let output = install(here, &["--uninstall"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("config.toml was changed, so it stays"),
        "{said}"
    );
    let left = ["etc/prefork/config.toml", "etc/prefork/shop.toml"].map(str::to_owned);
    assert_eq!(files(here), BTreeSet::from(left));
}

#[test]
fn an_installation_that_fails_says_why_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = format!("--destdir={}", directory.path().display());
    let binary = format!("--binary={BINARY}");
    std::fs::write(directory.path().join("usr"), "a file").expect("written");
    for (words, status, reason) in [
        (
            vec!["--prefiks=/usr"],
            2,
            "unknown argument --prefiks=/usr (--help lists the options)",
        ),
        (vec!["--prefix"], 2, "--prefix needs a value"),
        (vec!["--prefix=usr"], 2, "usr does not begin with /"),
        (
            vec!["--prefix=/a b"],
            2,
            "/a b has a character that a unit file cannot have",
        ),
        (
            vec![&here, "--binary=/nowhere"],
            1,
            "there is no program /nowhere (cargo build",
        ),
        (
            vec![&here, "--binary=/etc/passwd"],
            1,
            "/etc/passwd may not be executed",
        ),
        (
            vec![&here, "--binary=/bin/false"],
            1,
            "/bin/false does not run",
        ),
        (
            vec![&here, "--uninstall"],
            1,
            "nothing to remove: there is no ",
        ),
        (
            vec![&here, &binary],
            1,
            "/usr (run as root, or choose another --prefix)",
        ),
    ] {
        let output = script("install", &words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(
            said.starts_with("install: ") && said.contains(reason),
            "{words:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(script("install", &["--help"]).status.success());
    assert_eq!(
        files(directory.path()),
        BTreeSet::from(["usr".to_owned()]),
        "nothing was put anywhere"
    );
}

/// Runs a tool over a file that was installed.
fn reads(tool: &str, words: &[&str], file: &Path) {
    let Some(path) = testkit::tool(tool) else {
        return skipped(
            &format!("{tool} over {}", file.display()),
            &format!("{tool} is not installed"),
        );
    };
    let output = Command::new(path)
        .args(words)
        .arg(file)
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("it runs");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{tool}: {output:?}"
    );
}

#[test]
fn the_manual_and_the_completions_can_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    install(directory.path(), &[]);
    let share = directory.path().join("usr/local/share");
    reads(
        "man",
        &["--warnings", "--local-file"],
        &share.join("man/man8/supervisor.8"),
    );
    reads(
        "zsh",
        &["--no-exec"],
        &share.join("zsh/site-functions/_supervisor"),
    );
    reads(
        "fish",
        &["--no-execute"],
        &share.join("fish/vendor_completions.d/supervisor.fish"),
    );
    let script = "source \"$1\"; complete -p supervisor; COMP_WORDS=(supervisor rel) COMP_CWORD=1; \
                  _supervisor supervisor rel supervisor; echo \"found ${COMPREPLY[*]}\"";
    let file = share.join("bash-completion/completions/supervisor");
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(&file)
        .output()
        .expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.stderr.is_empty() && said.contains("found reload"),
        "{output:?}"
    );
}

/// A package of the binary under test, quickly made.
fn package(directory: &Path, revision: u32) -> PathBuf {
    let words = [
        format!("--binary={BINARY}"),
        format!("--output={}", directory.display()),
        format!("--revision={revision}"),
        "--compression=none".to_owned(),
    ];
    let output = script("package", &words.each_ref().map(String::as_str));
    assert!(output.status.success(), "{output:?}");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

#[test]
fn the_package_is_installed_serves_is_upgraded_without_loss_and_purged() {
    if testkit::tool("dpkg-deb").is_none() {
        return skipped("the package", "dpkg-deb is not installed");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let packages = [1, 2].map(|revision| package(directory.path(), revision));
    let contents = said(&["dpkg-deb", "--contents", &packages[0].display().to_string()]);
    for file in FILES.iter().filter(|file| !file.ends_with("manifest")) {
        let file = file
            .replace("site-functions", "vendor-completions")
            .replace("supervisor.8", "supervisor.8.gz");
        assert!(
            contents
                .lines()
                .any(|line| line.ends_with(&format!(" ./usr/{file}"))),
            "{file}: {contents}"
        );
    }
    assert!(
        contents.lines().all(|line| line.contains(" root/root ")),
        "{contents}"
    );
    let this = std::env::current_exe().expect("this program has a path");
    let shown = Path::new(BINARY).parent().expect("a directory");
    let arguments = ["--exact", "inside_package", "--ignored", "--nocapture"].map(OsStr::new);
    // The packages go by a place that is shown inside, as is the environment.
    let place = shown.join("packages-under-test");
    std::fs::create_dir_all(&place).expect("a directory");
    for package in &packages {
        std::fs::copy(package, place.join(package.file_name().expect("a name"))).expect("copied");
    }
    testkit::systemd::run("the package", &[], &[shown], &this, &arguments);
    std::fs::remove_dir_all(&place).expect("removed");
}

#[test]
fn the_package_and_debians_supervisor_serve_next_to_each_other() {
    let test = "Debian's supervisor";
    if testkit::tool("dpkg-deb").is_none() {
        return skipped(test, "dpkg-deb is not installed");
    }
    let theirs = testkit::systemd::fetched(SUPERVISORD);
    let Some(directory) = theirs.first().and_then(|package| package.parent()) else {
        let reason = format!("its package is not there (scripts/{SUPERVISORD} fetches it)");
        return skipped(test, &reason);
    };
    let place = Path::new(BINARY)
        .parent()
        .expect("a directory")
        .join("package-next-to-supervisord");
    std::fs::create_dir_all(&place).expect("a directory");
    let ours = package(&place, 1);
    std::fs::rename(&ours, place.join(OURS)).expect("renamed");
    let this = std::env::current_exe().expect("this program has a path");
    let arguments = ["--exact", "inside_neighbours", "--ignored", "--nocapture"].map(OsStr::new);
    testkit::systemd::run(test, &[], &[&place, directory], &this, &arguments);
    std::fs::remove_dir_all(&place).expect("removed");
}

// ---- inside

fn dpkg(words: &[&str]) -> String {
    let mut dpkg = Command::new("dpkg");
    dpkg.args(["--force-confdef", "--force-confold", "--force-unsafe-io"])
        .args(words);
    let output = dpkg
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .expect("dpkg is there");
    let said = [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat();
    assert!(
        output.status.success(),
        "dpkg {words:?}: {said}\n{}",
        UNIT.journal()
    );
    said
}

/// Lets packages start their services, which images often forbid: there would be nothing to test.
fn prepare() {
    assert!(
        testkit::systemd::is_inside(),
        "this would change the machine"
    );
    let _ = std::fs::remove_file("/usr/sbin/policy-rc.d");
    // Indexing all manuals of the machine takes longer than the rest.
    let _ = std::fs::remove_file("/var/lib/man-db/auto-update");
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_package() {
    prepare();
    let place = Path::new(BINARY)
        .parent()
        .expect("a directory")
        .join("packages-under-test");
    let mut packages: Vec<String> = std::fs::read_dir(&place)
        .expect("the packages")
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect();
    packages.sort();
    let v4: Address = "127.0.0.1:8000".parse().expect("an address");

    // Installed, enabled, started, and it serves.
    dpkg(&["--install", &packages[0]]);
    assert_eq!(UNIT.property("ActiveState"), "active", "{}", UNIT.journal());
    assert_eq!(
        http::get(&v4, "/").expect("an answer").body,
        "Hello, client!"
    );
    assert_eq!(said(&["systemctl", "is-enabled", UNIT.0]), "enabled");
    assert_eq!(
        said(&["readlink", &format!("/proc/{}/exe", UNIT.pid())]),
        "/usr/bin/supervisor"
    );

    // A second instance, and a changed configuration.
    let config = "bind = \"127.0.0.1:8000\"\nworkers = 2\nmin-ready = \"100ms\"\n";
    std::fs::write("/etc/prefork/config.toml", config).expect("written");
    std::fs::write("/etc/prefork/shop.toml", config.replace("8000", "8001")).expect("written");
    UNIT.must("reload");
    let shop = Unit("prefork@shop.service");
    shop.must("start");

    // Another version, while both are asked.
    let loads = [8000, 8001].map(|port| {
        let address = format!("127.0.0.1:{port}").parse().expect("an address");
        [
            start(Plan::rate(&address, 100.0).http("/", Some("Hello, client!"))),
            start(Plan::kept_alive(&address, 1).http("/", Some("Hello, client!"))),
        ]
    });
    loads
        .iter()
        .flatten()
        .for_each(|load| load.wait_for_more(20));
    let before = [UNIT, shop].map(|unit| unit.pid());
    for package in [&packages[1], &packages[0], &packages[1]] {
        let output = dpkg(&["--install", package]);
        assert!(!output.contains("could not be reloaded"), "{output}");
        assert_eq!([UNIT, shop].map(|unit| unit.pid()), before);
        loads
            .iter()
            .flatten()
            .for_each(|load| load.wait_for_more(20));
    }
    for unit in [UNIT, shop] {
        assert_eq!(
            unit.journal().matches("upgraded in place").count(),
            3,
            "{}",
            unit.journal()
        );
        assert_eq!(
            (unit.property("NRestarts"), unit.is_active()),
            ("0".to_owned(), true)
        );
    }
    for load in loads.into_iter().flatten() {
        let report = load.finish();
        println!("{report}");
        report.assert_flawless();
    }
    assert_eq!(
        std::fs::read_to_string("/etc/prefork/config.toml").expect("it is there"),
        config
    );

    // A configuration that is broken meanwhile: the package says so, and what served goes on.
    std::fs::write("/etc/prefork/config.toml", "nonsense = 1\n").expect("written");
    let output = dpkg(&["--install", &packages[1]]);
    assert!(
        output.contains("prefork.service could not be reloaded"),
        "{output}"
    );
    assert_eq!(
        http::get(&v4, "/").expect("an answer").body,
        "Hello, client!"
    );
    assert_eq!(UNIT.pid(), before[0]);
    // What is stopped stays stopped.
    shop.must("stop");
    dpkg(&["--install", &packages[1]]);
    assert_eq!(shop.property("ActiveState"), "inactive");
    shop.must("start");

    dpkg(&["--remove", "prefork"]);
    assert!(v4.connect().is_err() && shop.property("ActiveState") == "inactive");
    assert!(!Path::new("/usr/bin/supervisor").exists());
    assert!(
        Path::new("/etc/prefork/config.toml").exists(),
        "its configuration stays"
    );
    dpkg(&["--purge", "prefork"]);
    assert!(!Path::new("/etc/prefork/config.toml").exists());
    assert!(
        Path::new("/etc/prefork/shop.toml").exists(),
        "a configuration that the package did not install stays"
    );
    assert!(!command(&["systemctl", "cat", UNIT.0]).status.success());
    let left = said(&[
        "find",
        "/etc/systemd",
        "/var/lib/systemd",
        "-name",
        "prefork*",
    ]);
    assert_eq!(left, "");
    assert!(!command(&["dpkg", "--status", "prefork"]).status.success());
}

#[test]
#[ignore = "runs under a systemd of its own"]
fn inside_neighbours() {
    prepare();
    let ours = Path::new(BINARY)
        .parent()
        .expect("a directory")
        .join("package-next-to-supervisord")
        .join(OURS)
        .display()
        .to_string();
    let packages: Vec<String> = testkit::systemd::fetched(SUPERVISORD)
        .iter()
        .map(|package| package.display().to_string())
        .collect();
    let theirs: Vec<&str> = std::iter::once("--install")
        .chain(packages.iter().map(String::as_str))
        .collect();
    let neighbour = Unit("supervisor.service");
    let v4: Address = "127.0.0.1:8000".parse().expect("an address");
    // supervisord answers on its own socket with its own pid, and runs its configured program.
    let they_answer = || {
        let pid = neighbour.pid();
        assert!(neighbour.is_active(), "{}", neighbour.journal());
        assert_eq!(said(&["supervisorctl", "pid"]), pid);
        wait_until("supervisord's program to run", LONG, || {
            let status = command(&["supervisorctl", "status"]);
            String::from_utf8_lossy(&status.stdout).contains("RUNNING")
        });
        pid
    };
    // Ours serves, and root's commands find it without --control.
    let we_answer = || {
        let pid = UNIT.pid();
        assert!(UNIT.is_active(), "{}", UNIT.journal());
        let answer = http::get(&v4, "/").expect("an answer");
        assert_eq!(answer.body, "Hello, client!");
        let status = said(&["supervisor", "status"]);
        assert!(status.contains(&format!("pid         {pid}")), "{status}");
        pid
    };
    let program = "[program:sleep]\ncommand=/bin/sleep 1000\nstartsecs=0\n";
    std::fs::create_dir_all("/etc/supervisor/conf.d").expect("a directory");
    std::fs::write("/etc/supervisor/conf.d/sleep.conf", program).expect("written");

    dpkg(&theirs);
    dpkg(&["--install", &ours]);
    let before = (they_answer(), we_answer());
    UNIT.must("reload");
    said(&["supervisorctl", "restart", "sleep"]);
    assert_eq!((they_answer(), we_answer()), before);
    assert_eq!(said(&["man", "--where", "8", "supervisor"]), MANUAL);

    // Ours goes and takes nothing of theirs along.
    dpkg(&["--purge", "prefork"]);
    assert!(v4.connect().is_err());
    assert_eq!(they_answer(), before.0);
    assert_eq!(said(&["dpkg", "--verify", "supervisor"]), "");

    // And the other way around.
    dpkg(&["--install", &ours]);
    let pid = we_answer();
    dpkg(&["--purge", "supervisor"]);
    assert!(!command(&["systemctl", "cat", neighbour.0]).status.success());
    assert_eq!(we_answer(), pid);
    assert_eq!(said(&["dpkg", "--verify", "prefork"]), "");
}
