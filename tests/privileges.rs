//! Who the processes are and what they may do, read from `/proc`. All of it needs root.

use nix::sys::signal::Signal::{SIGABRT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2};
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use testkit::process::Process;
use testkit::{LONG, Server, Setup, skipped, wait_until};

/// The user that workers run as here: every system has it.
const NOBODY: &str = "65534";
/// CAP_NET_BIND_SERVICE, as `/proc` shows it.
const NET_BIND_SERVICE: &str = "0000000000000400";
const NONE: &str = "0000000000000000";
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// Root, or a visible note that the test was skipped.
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped(test, "only root can become another user");
    }
    root
}

fn setup() -> Setup {
    Server::setup(env!("CARGO_BIN_EXE_supervisor")).args(["--min-ready", "100ms"])
}

/// As an external program: one that serves, or `None` and a note.
fn python(setup: Setup, test: &str) -> Option<Setup> {
    if !Path::new("/usr/bin/python3").is_file() {
        skipped(test, "/usr/bin/python3 is not there");
        return None;
    }
    // Its file may lie where other users have no access; the interpreter takes it as text.
    let code = std::fs::read_to_string(testkit::program("minimal.py")).expect("the program");
    let setup = setup.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    Some(
        setup
            .args(["--ready", "notify"])
            .program(["python3".to_owned(), "-c".to_owned(), code]),
    )
}

/// `/proc/PID/status` by name.
fn status(process: Process) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.0)).expect("it runs");
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((
            name.to_owned(),
            value.split_whitespace().collect::<Vec<_>>().join(" "),
        ))
    };
    text.lines().filter_map(line).collect()
}

/// Asserts that a process runs as this user only, with these capabilities and no way to more.
#[track_caller]
fn assert_is(process: Process, user: &str, group: &str, groups: &str, capabilities: &str) {
    let status = status(process);
    let four = |number: &str| [number; 4].join(" ");
    assert_eq!(
        status["Uid"],
        four(user),
        "real, effective, saved, file system"
    );
    assert_eq!(
        status["Gid"],
        four(group),
        "real, effective, saved, file system"
    );
    assert_eq!(status["Groups"], groups);
    for set in SETS {
        assert_eq!(status[set], capabilities, "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
}

/// Makes the directory of a test root's alone. Notices go elsewhere then.
fn private(setup: &Setup) {
    std::fs::set_permissions(setup.path(""), Permissions::from_mode(0o700)).expect("chmod");
}

/// A stock server and an external one whose workers run as nobody.
fn of_nobody(test: &str, prepare: impl Fn(Setup) -> Setup) -> Vec<Server> {
    if !root(test) {
        return Vec::new();
    }
    let base = || prepare(setup().workers(2).args(["--user", NOBODY]));
    let external = python(base(), test).map(Setup::start);
    [base().start()].into_iter().chain(external).collect()
}

#[test]
fn workers_of_another_user_have_its_groups_and_no_capability() {
    let private = |setup| {
        private(&setup);
        setup
    };
    for server in of_nobody(
        "workers_of_another_user_have_its_groups_and_no_capability",
        private,
    ) {
        for worker in server.ready() {
            assert_is(worker, NOBODY, NOBODY, NOBODY, NONE);
            assert_eq!(worker.variable("USER").as_deref(), Some("nobody"));
            assert_ne!(worker.variable("HOME").as_deref(), Some("/root"));
        }
        assert_eq!(server.get("/").status, 200);
        assert_eq!(
            status(server.process())["Uid"],
            "0 0 0 0",
            "the supervisor stays who it is"
        );
    }
}

#[test]
fn a_group_and_more_groups_can_be_named_and_capabilities_kept() {
    let more = [
        "--group",
        "12345",
        "--groups",
        "23456",
        "--keep-cap",
        "net_bind_service",
    ];
    let test = "a_group_and_more_groups_can_be_named_and_capabilities_kept";
    for server in of_nobody(test, |setup| setup.args(more)) {
        for worker in server.ready() {
            assert_is(
                worker,
                NOBODY,
                "12345",
                "12345 23456 65534",
                NET_BIND_SERVICE,
            );
        }
    }
}

#[test]
fn workers_of_root_keep_no_capability_either() {
    if !root("workers_of_root_keep_no_capability_either") {
        return;
    }
    let server = setup().workers(1).start();
    let groups = status(server.process())["Groups"].clone();
    assert_is(server.ready()[0], "0", "0", &groups, NONE);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn no_process_of_its_user_can_look_into_a_rust_worker_and_a_hung_one_still_leaves_a_core() {
    if !root(
        "no_process_of_its_user_can_look_into_a_rust_worker_and_a_hung_one_still_leaves_a_core",
    ) {
        return;
    }
    let dumped = |dumps: &str, hidden: bool| {
        let unlimited = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];
        let setup = setup()
            .workers(1)
            .args(["--user", NOBODY, "--core-dumps", dumps]);
        // In a sandbox, the kernel would write no file into this directory.
        let setup = setup.args(["--sandbox", "off"]).wrapped(unlimited);
        chown(setup.path(""), Some(65534), Some(65534)).expect("chown");
        let server = setup.start();
        let worker = server.ready()[0];
        // What cannot be looked into belongs to root.
        let owner = std::fs::metadata(format!("/proc/{}/environ", worker.0))
            .expect("it runs")
            .uid();
        assert_eq!(owner == 0, hidden, "--core-dumps {dumps}");
        worker.signal(SIGABRT);
        server.wait_for_replacement(0, worker);
        let death = server.wait_for_log(") died (");
        assert!(death.contains("killed by SIGABRT"), "{death}");
        death.contains("core dumped")
    };
    let (on, abort, off) = (
        dumped("on", false),
        dumped("abort", true),
        dumped("off", true),
    );
    // Whether there is one at all is up to the machine's core_pattern.
    assert_eq!((abort, off), (on, false));
    println!("core dumps on this machine: {on}");
}

#[test]
fn an_unprivileged_supervisor_passes_no_capability_on_but_those_that_are_kept() {
    if !root("an_unprivileged_supervisor_passes_no_capability_on_but_those_that_are_kept") {
        return;
    }
    // As systemd starts a service with User= and AmbientCapabilities=; and one with User= alone.
    let user = [
        "setpriv",
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
    ];
    let ambient = [
        "--inh-caps",
        "+net_bind_service",
        "--ambient-caps",
        "+net_bind_service",
    ];
    for (has, keep) in [(false, false), (true, false), (true, true)] {
        let wrapper = user.iter().chain(ambient.iter().filter(|_| has));
        // A sandbox would take the right to gain privileges by itself.
        let setup = setup()
            .copied()
            .workers(1)
            .args(["--sandbox", "off"])
            .wrapped(wrapper.copied());
        let setup = if keep {
            setup.args(["--keep-cap", "net_bind_service"])
        } else {
            setup
        };
        chown(setup.path(""), Some(65534), Some(65534)).expect("chown");
        let server = setup.start();
        let (own, worker) = (status(server.process()), status(server.ready()[0]));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(own[set], if has { NET_BIND_SERVICE } else { NONE }, "{set}");
            assert_eq!(
                worker[set],
                if keep { NET_BIND_SERVICE } else { NONE },
                "{set}"
            );
        }
        assert_eq!(
            (worker["Uid"].as_str(), worker["Groups"].as_str()),
            ("65534 65534 65534 65534", "")
        );
        assert_eq!(
            worker["NoNewPrivs"], own["NoNewPrivs"],
            "nothing about its identity has changed"
        );
        assert_eq!(server.get("/").status, 200);
    }
}

#[test]
fn workers_of_another_user_die_with_a_supervisor_that_is_killed() {
    for mut server in of_nobody(
        "workers_of_another_user_die_with_a_supervisor_that_is_killed",
        |setup| setup,
    ) {
        let workers = server.ready();
        server.signal(SIGKILL);
        server.wait_exit(LONG);
        wait_until("the workers' end", LONG, || {
            workers.iter().all(|worker| !worker.runs())
        });
    }
}

#[test]
fn workers_of_another_user_are_reloaded_aborted_killed_and_stopped() {
    let test = "workers_of_another_user_are_reloaded_aborted_killed_and_stopped";
    for mut server in of_nobody(test, |setup| setup.args(["--hang-timeout", "2s"])) {
        let before = server.ready();
        server.reload();
        assert!(server.ready().iter().all(|worker| !before.contains(worker)));
        let external = server.ready()[0].variable("PREFORK_CHANNEL").is_none();
        if !external {
            // Stopped, it can act upon nothing but SIGKILL.
            let worker = server.ready()[0];
            worker.signal(SIGSTOP);
            server.wait_for_log("sending SIGABRT");
            server.wait_for_replacement(0, worker);
            wait_until("the hung worker's end", LONG, || !worker.runs());
        }
        server.signal(SIGTERM);
        assert!(server.wait_exit(LONG).success());
    }
}

#[test]
fn what_workers_cannot_reach_is_refused_with_the_remedy_at_the_start_and_by_a_reload() {
    if !root("what_workers_cannot_reach_is_refused_with_the_remedy") {
        return;
    }
    let setup = setup().workers(1).config("user = \"65534\"\n");
    private(&setup);
    let (directory, log) = (setup.path(""), setup.path("log"));
    let server = setup.start();
    let before = server.ready();
    let refused = |more: String, expected: &str| {
        server.file("config.toml", &format!("user = \"65534\"\n{more}\n"));
        let output = server.command(&["reload", "--wait"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && told.contains(expected),
            "{told}"
        );
    };
    let path = directory.display();
    refused(
        format!("directory = \"{path}\""),
        "as user nobody (uid 65534): Permission denied (give it to them with chown or chmod, or \
         name another)",
    );
    refused(
        format!("log-file = \"{}\"", log.display()),
        "workers cannot write log file",
    );
    std::fs::copy("/bin/true", server.path("true")).expect("a program");
    refused(format!("command = [\"{path}/true\"]"), "Permission denied");
    refused(
        "keep-cap = [\"sys_resource\", \"mac_admin\", \"64\"]".to_owned(),
        "`64` is no capability",
    );
    refused(
        "group = \"nosuchgroup\"".to_owned(),
        "there is no group `nosuchgroup`",
    );
    assert_eq!(server.ready(), before);
}

#[test]
fn check_finds_wrong_names() {
    let binary = env!("CARGO_BIN_EXE_supervisor");
    for (word, name) in [
        ("--user", "nosuchuser"),
        ("--group", "nosuchgroup"),
        ("--keep-cap", "fly"),
    ] {
        let output = std::process::Command::new(binary)
            .args(["check", word, name])
            .output()
            .expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && told.contains(name) && told.contains(word),
            "{told}"
        );
    }
}

#[test]
fn a_worker_may_not_use_the_control_socket() {
    let test = "a_worker_may_not_use_the_control_socket";
    if !Path::new("/usr/bin/python3").is_file() {
        return skipped(test, "/usr/bin/python3 is not there");
    }
    // It tells in a file what it is told: itself, its child, and an orphan of its.
    let script = r#"
import os, socket, sys, time
def ask(name):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect("prefork.sock")
        try:
            line.sendall(b'{"command":"stop"}\n')
        except BrokenPipeError:
            pass
        answer = line.recv(4096).decode()
    with open(name + ".new", "w") as file:
        file.write(answer)
    os.rename(name + ".new", name)
ask("itself")
if os.fork() == 0:
    ask("child")
    if os.fork() == 0:
        os.setsid()
        while os.getppid() != int(sys.argv[1] if len(sys.argv) > 1 else os.environ["SUPERVISOR"]):
            time.sleep(0.01)
        ask("orphan")
    os._exit(0)
while True:
    time.sleep(1)
"#;
    let wrapper = ["sh", "-c", "SUPERVISOR=$$ exec \"$@\"", "sh"];
    let setup = setup()
        .workers(1)
        .args(["--ready", "after=100ms"])
        .wrapped(wrapper);
    let server = setup.program(["/usr/bin/python3", "-c", script]).start();
    for name in ["itself", "child", "orphan"] {
        wait_until(name, LONG, || server.path(name).exists());
        let answer = std::fs::read_to_string(server.path(name)).expect("an answer");
        assert!(
            answer.contains("a worker may not control its server"),
            "{name}: {answer}"
        );
    }
    assert_eq!(server.state(), "serving");
}

#[test]
fn a_worker_of_another_user_is_refused_whatever_is_the_supervisors_or_roots() {
    let test = "a_worker_of_another_user_is_refused_whatever_is_the_supervisors_or_roots";
    if !root(test) {
        return;
    }
    if !Path::new("/usr/bin/python3").is_file() {
        return skipped(test, "/usr/bin/python3 is not there");
    }
    // Where port 22 is free, and root's.
    if let Err(reason) = testkit::delay::own_network() {
        return skipped(test, &reason.to_string());
    }
    let script = r#"
import os, signal, socket, time
boss = os.getppid()
def tcp(): socket.socket().bind(("127.0.0.1", 22))
def control(): socket.socket(socket.AF_UNIX).connect("prefork.sock")
tries = {
    "bind a low port": tcp,
    "open the control socket": control,
    "signal the supervisor": lambda: os.kill(boss, signal.SIGTERM),
    "read the supervisor's memory": lambda: open(f"/proc/{boss}/mem"),
    "become root": lambda: os.setuid(0),
    "take root's group": lambda: os.setgid(0),
    "take more groups": lambda: os.setgroups([0]),
    "write what is root's": lambda: open("/etc/passwd", "a"),
    "give files away": lambda: os.chown("mine", 0, 0),
}
open("mine", "w").close()
with open("told.new", "w") as told:
    for name, act in tries.items():
        try:
            act()
            told.write(f"{name}: done\n")
        except PermissionError:
            told.write(f"{name}: refused\n")
os.rename("told.new", "told")
while True:
    time.sleep(1)
"#;
    let setup = setup()
        .workers(1)
        .args(["--user", NOBODY, "--ready", "after=100ms"]);
    std::fs::set_permissions(setup.path(""), Permissions::from_mode(0o777)).expect("chmod");
    let server = setup.program(["/usr/bin/python3", "-c", script]).start();
    wait_until("what it tells", LONG, || server.path("told").exists());
    let told = std::fs::read_to_string(server.path("told")).expect("it tells");
    let refused = told
        .lines()
        .filter(|line| line.ends_with(": refused"))
        .count();
    assert_eq!((refused, told.lines().count()), (9, 9), "{told}");
}

#[test]
fn workers_of_another_user_cannot_even_open_the_control_socket() {
    for server in of_nobody(
        "workers_of_another_user_cannot_even_open_the_control_socket",
        |setup| setup,
    ) {
        let about = std::fs::metadata(server.control()).expect("a control socket");
        assert_eq!(
            (about.mode() & 0o777, about.uid(), about.gid()),
            (0o660, 0, 0)
        );
    }
}

/// A server that runs as nobody, in a directory of that user, in a network of its own, at a port
/// that is root's.
fn as_nobody(test: &str, config: &str) -> Option<(Setup, String)> {
    if !root(test) {
        return None;
    }
    // Of this thread alone; whom it starts comes along.
    if let Err(reason) = testkit::delay::own_network() {
        skipped(test, &reason.to_string());
        return None;
    }
    let base = format!("supervisor-user = \"65534\"\nworkers = 2\n{config}\n");
    let setup = setup()
        .copied()
        .no_bind()
        .config(&format!("{base}bind = [\"127.0.0.1:81\"]\n"));
    let nobody = Some(65534);
    chown(setup.path(""), nobody, nobody).expect("chown");
    Some((setup, base))
}

const KEPT: &str = "0000000000000400";

#[test]
fn a_supervisor_of_another_user_binds_low_ports_at_a_reload_and_keeps_that_over_an_upgrade() {
    let test =
        "a_supervisor_of_another_user_binds_low_ports_at_a_reload_and_keeps_that_over_an_upgrade";
    let Some((setup, base)) = as_nobody(test, "") else {
        return;
    };
    let mut server = setup.start();
    let line = server.wait_for_log("the supervisor is user nobody (uid 65534) from here on");
    assert!(
        line.contains("keeps CAP_NET_BIND_SERVICE; until a restart as root it cannot"),
        "{line}"
    );
    let is_nobody = |server: &Server| {
        let own = status(server.process());
        assert_eq!(own["Uid"], [NOBODY; 4].join(" "));
        assert_eq!(
            (own["Gid"].as_str(), own["Groups"].as_str()),
            ("65534 65534 65534 65534", NOBODY)
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(own[set], KEPT, "{set}");
        }
        assert_eq!(
            own["CapBnd"], NONE,
            "nothing more can be gained by executing a file"
        );
        for worker in server.ready() {
            assert_is(worker, NOBODY, NOBODY, NOBODY, NONE);
        }
    };
    is_nobody(&server);
    let both = format!("{base}bind = [\"127.0.0.1:81\", \"127.0.0.1:82\"]\nmax-workers = 9\n");
    server.file("config.toml", &both);
    server.reload();
    assert_eq!(server.addresses().len(), 2);
    // More slots than at first: their sockets join those that were bound before.
    server.file("config.toml", &both.replace("workers = 2", "workers = 9"));
    server.reload();
    assert_eq!(server.ready().len(), 9);
    let (pid, workers) = (server.process(), server.ready());
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    server.wait_until_settled(LONG);
    assert_eq!((server.process(), server.ready()), (pid, workers));
    is_nobody(&server);
    server.file("config.toml", &both.replace(":82", ":83"));
    server.reload();
    is_nobody(&server);
    server.signal(SIGTERM);
    assert!(server.wait_exit(LONG).success());
}

#[test]
fn a_reload_that_asks_for_what_the_supervisor_gave_up_is_refused_and_changes_nothing() {
    let test = "a_reload_that_asks_for_what_the_supervisor_gave_up_is_refused_and_changes_nothing";
    let Some((setup, base)) = as_nobody(test, "") else {
        return;
    };
    let server = setup.start();
    let before = server.ready();
    let bind = "bind = [\"127.0.0.1:81\"]\n";
    let refused = |text: String, expected: &[&str]| {
        server.file("config.toml", &text);
        let output = server.command(&["reload", "--wait"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && expected.iter().all(|part| told.contains(part)),
            "{told}"
        );
    };
    refused(
        format!("{base}{bind}user = \"1\"\n"),
        &[
            "cannot run workers as user",
            "without CAP_SETGID, CAP_SETUID (it gave that up at its start: restart it as root with \
             this setting, or leave the setting out)",
        ],
    );
    refused(
        format!("{base}bind = [\"unix:/etc/nobody.sock\"]\n"),
        &[
            "cannot bind unix:/etc/nobody.sock: permission denied (this user must be able to write \
             in the directory)",
        ],
    );
    let socket = server.path("given.sock");
    refused(
        format!("{base}bind = [\"unix:{},owner=root\"]\n", socket.display()),
        &["only root can give a file away"],
    );
    assert!(!socket.exists());
    refused(
        format!("{base}{bind}keep-cap = \"net_raw\"\n"),
        &[
            "cannot let workers keep CAP_NET_RAW",
            "leave it out of keep-cap",
        ],
    );
    refused(
        format!("{}{bind}", base.replace("65534", "1")),
        &[
            "the supervisor cannot become user",
            "while it runs as user 65534 (restart it as root to change supervisor-user)",
        ],
    );
    assert_eq!(server.ready(), before);
    assert_eq!(server.get("/").status, 200);
}

#[test]
fn a_supervisor_of_another_user_gives_unix_sockets_away_if_it_is_configured_to() {
    let test = "a_supervisor_of_another_user_gives_unix_sockets_away_if_it_is_configured_to";
    if !root(test) {
        return;
    }
    let setup = setup()
        .copied()
        .no_bind()
        .args(["--supervisor-user", NOBODY, "--workers", "1"]);
    chown(setup.path(""), Some(65534), Some(65534)).expect("chown");
    let bind = |setup: &Path, name: &str| {
        format!(
            "bind = [\"unix:{}/{name},owner=1,group=2,mode=0640\"]\n",
            setup.display()
        )
    };
    let first = bind(&setup.path(""), "one");
    let mut server = setup.config(&first).start();
    // CAP_CHOWN, CAP_FOWNER, CAP_NET_BIND_SERVICE
    assert_eq!(status(server.process())["CapPrm"], "0000000000000409");
    server.file("config.toml", &bind(server.directory(), "two"));
    server.reload();
    let about = std::fs::metadata(server.path("two")).expect("a socket");
    assert_eq!(
        (about.uid(), about.gid(), about.mode() & 0o777),
        (1, 2, 0o640)
    );
    wait_until("the old socket's end", LONG, || {
        !server.path("one").exists()
    });
    assert_is(server.ready()[0], NOBODY, NOBODY, NOBODY, NONE);
}

#[test]
fn a_supervisor_of_another_user_rules_over_workers_of_a_third() {
    let test = "a_supervisor_of_another_user_rules_over_workers_of_a_third";
    let Some((setup, _)) = as_nobody(test, "user = \"1\"\nhang-timeout = \"2s\"") else {
        return;
    };
    let mut server = setup.start();
    let own = status(server.process());
    // CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE
    assert_eq!(
        (own["CapPrm"].as_str(), own["CapBnd"].as_str()),
        ("00000000000004e0", NONE)
    );
    let first = server.ready();
    for worker in &first {
        let status = status(*worker);
        assert_eq!(status["Uid"], "1 1 1 1");
        assert!(
            SETS.iter().all(|set| status[*set] == NONE) && status["NoNewPrivs"] == "1",
            "{status:?}"
        );
    }
    server.reload();
    let worker = server.ready()[0];
    assert!(!first.contains(&worker));
    worker.signal(SIGSTOP);
    server.wait_for_log("sending SIGABRT");
    server.wait_for_replacement(0, worker);
    wait_until("the hung worker's end", LONG, || !worker.runs());
    server.signal(SIGUSR2);
    server.wait_for_log("upgraded in place");
    server.wait_until_settled(LONG);
    server.reload();
    let workers = server.ready();
    server.signal(SIGKILL);
    server.wait_exit(LONG);
    wait_until("the workers' end", LONG, || {
        workers.iter().all(|worker| !worker.runs())
    });
}

#[test]
fn a_supervisor_of_another_user_that_cannot_reopen_its_log_says_so_at_once_and_goes_on() {
    let test =
        "a_supervisor_of_another_user_that_cannot_reopen_its_log_says_so_at_once_and_goes_on";
    let Some((setup, _)) = as_nobody(test, "") else {
        return;
    };
    let Some(setup) = python(setup, test) else {
        return;
    };
    // A directory in which root alone can write; a directory of a test belongs to the user nobody
    // by now.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
    let log = folder.path().join("log");
    let server = setup
        .args(["--log-file".into(), log.clone().into_os_string()])
        .start();
    let logged = || std::fs::read_to_string(&log).expect("a log");
    assert!(
        logged().contains(&format!(
            "it cannot run workers as another user, give a Unix socket to another owner, reopen \
             log file {}",
            log.display()
        )),
        "{}",
        logged()
    );
    server.signal(SIGUSR1);
    wait_until("the refusal", LONG, || {
        logged().contains("cannot open log file")
    });
    assert!(
        logged().contains("going on with the old one"),
        "{}",
        logged()
    );
    let output = server.command(&["upgrade", "--wait"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "Permission denied (os error 13) (give it to user 65534 with chown, or choose \
     another --log-file)";
    assert!(
        !output.status.success() && told.contains(expected),
        "{told}"
    );
    assert_eq!(server.get("/").status, 200);
}
