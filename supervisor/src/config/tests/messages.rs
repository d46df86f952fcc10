//! What a user reads is compared to the letter.

use super::*;
use std::path::Path;

#[test]
fn every_problem_in_a_file_is_shown_at_once_with_its_line() {
    let text = "workers = 2000\nclas = \"x\"\n\tthreads = \"ä\" # eight\n";
    assert_eq!(
        file(text).unwrap_err(),
        "\
app.toml:1:11: workers: 2000 is out of range (1 to 1024)
  |
1 | workers = 2000
  |           ^^^^
app.toml:2:1: clas: unknown setting (did you mean `class`?)
  |
2 | clas = \"x\"
  | ^^^^
app.toml:3:12: threads: is text here; write the number without quotes, like 8
  |
3 |  threads = \"ä\" # eight
  |            ^^^"
    );
}

/// What is written, and what is said of it.
const SLIPS: &[(&str, &str)] = &[
    (
        "workers = ",
        "1:11: the value is missing (write it after the `=`, or leave the line out)",
    ),
    (
        "class = async",
        "1:9: text needs quotes (write it like \"async\")",
    ),
    (
        "workers = 1\nworkers = 2",
        "2:1: is set twice in this file (leave one out)",
    ),
    (
        "a b = 3",
        "1:3: key with no value, expected `=` (the file is TOML; write lines like workers = 8)",
    ),
    (
        "[server]\nworkers = 2",
        "1:2: server: unknown section (the only one is [env]; every other setting stands \
             above it)",
    ),
    (
        "max_workers = 3",
        "1:1: max_workers: unknown setting (did you mean `max-workers`?)",
    ),
    (
        "comand = [\"a\"]",
        "1:1: comand: unknown setting (did you mean `command`?)",
    ),
    (
        "xyzzy = 3",
        "1:1: xyzzy: unknown setting (the settings are the options of --help, without their \
             dashes)",
    ),
    (
        "config = \"x\"",
        "1:1: config: a file cannot name another one (leave the line out)",
    ),
    (
        "hang-timeout = 30",
        "1:16: hang-timeout: `30` has no unit (write it like 30s or 30ms); `off` switches it \
             off",
    ),
    (
        "hang-timeout = false",
        "1:16: hang-timeout: `false` is no duration (write it like 30s, 500ms or 1m 30s); \
             `off` switches it off",
    ),
    (
        "graceful-timeout = \"2 weeks\"",
        "1:20: graceful-timeout: 2 weeks is out of range (0s to 1day); `off` waits as long as it takes",
    ),
    (
        "bind = [\"[::1]:80\", \"*:80\"]",
        "1:21: bind: `*:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and \
             [::]:80 for IPv6)",
    ),
    (
        "bind = []",
        "1:8: bind: the list is empty (name an address, or leave it out)",
    ),
    (
        "bind = [\"[::1]:80\", \"[0::1]:80\"]",
        "1:8: bind: [::1]:80 is named twice (leave one out)",
    ),
    (
        "bind = \"fd://web\"",
        "1:8: bind: no inherited socket is named web (none was inherited)",
    ),
    (
        "workers = [1]",
        "1:11: workers: is a list here; write one value, like 8",
    ),
    (
        "[workers]",
        "1:1: workers: is a table or a date here; write one value, like 8",
    ),
    (
        "workers = 99999999999999999999",
        "1:11: workers: 99999999999999999999 is out of range (1 to 1024)",
    ),
    (
        "workers = 1.5",
        "1:11: workers: `1.5` is no whole number (write one from 1 to 1024, a range like \
             2..16, or auto)",
    ),
    (
        "[env]\nLISTEN_FDS = 1",
        "1:1: env: LISTEN_FDS is set for each worker by the supervisor itself (choose \
             another name)",
    ),
    (
        "env = \"A\"",
        "1:7: env: `A` sets no variable (write it like KEY=VALUE)",
    ),
    (
        "command = \"a b\"",
        "1:11: command: is no list of words; write it like [\"python3\", \"app.py\"]",
    ),
    (
        "command = []",
        "1:11: command: is no list of words; write it like [\"python3\", \"app.py\"]",
    ),
    (
        "command = [\"a\"]\napp = \"hello\"",
        "1:11: command: a program cannot serve beside the app `hello` (leave one of them out)",
    ),
    (
        "app = \"helo\"",
        "1:7: app: there is no app `helo` (choose one of hello, files:DIR, sleep, burn, \
             block, echo, greeter)",
    ),
    (
        "workers = 4\nmax-workers = 2",
        "2:15: max-workers: 2 is less than the 4 workers (raise it, or leave it out)",
    ),
    (
        "workers = \"4..2\"",
        "1:11: workers: 4..2 ends before it begins (write 2..4)",
    ),
    (
        "workers = \"0..3\"",
        "1:11: workers: 0 in 0..3 is out of range (1 to 1024)",
    ),
    (
        "workers = \"2..\"",
        "1:11: workers: `2..` is no range (write its two ends, like 2..16)",
    ),
    (
        "workers = \"2...4\"",
        "1:11: workers: `2...4` is no range (write its two ends, like 2..16)",
    ),
    (
        "workers = \"2..16\"\nmax-workers = 8",
        "2:15: max-workers: 8 is not the end of the range 2..16 of workers (leave it out)",
    ),
    (
        "surge = 0",
        "1:9: surge: `0` is neither `all` nor a number from 1 to 1024",
    ),
    (
        "stop-signal = \"KILL\"",
        "1:15: stop-signal: SIGKILL cannot be caught, so no worker could drain (choose TERM, QUIT or INT; KILL \
             follows at graceful-timeout by itself)",
    ),
    (
        "stop-signal = \"15\"",
        "1:15: stop-signal: `15` is no signal (write a name, like TERM, QUIT or INT)",
    ),
    (
        "max-head = \"1KB\"",
        "1:12: max-head: 1KB is out of range (8KiB to 16MiB)",
    ),
    (
        "max-body = \"1TB\"",
        "1:12: max-body: `1TB` is no size (write it like 64KiB, 10MB or 65536); `off` \
             switches it off",
    ),
    (
        "directory = \"/none\"",
        "1:13: directory: /none is no directory (make it, or name another)",
    ),
    (
        "control = \"/run/\"",
        "1:11: control: /run/ is a directory (name the socket in it)",
    ),
    (
        "class = \"fast\"",
        "1:9: class: `fast` is no worker class (choose sync, threads or async)",
    ),
    (
        "log-level = \"loud\"",
        "1:13: log-level: `loud` is no log level (choose off, error, warn, info, debug or \
             trace)",
    ),
    (
        "log-format = \"xml\"",
        "1:14: log-format: `xml` is no log format (choose text or json)",
    ),
    ("log-file = \"\"", "1:12: log-file: `` is no path"),
];

#[test]
fn each_slip_in_a_file_gets_a_sentence() {
    for (text, message) in SLIPS {
        assert_eq!(brief(text), format!("app.toml:{message}"), "{text}");
    }
}

#[test]
fn control_characters_of_a_file_reach_neither_terminal_nor_log() {
    let message = file("\"\\u001b\" = 1\nclass = \"\\n\\u001b[31m\"").unwrap_err();
    assert!(
        message.contains("app.toml:1:1: \\u{1b}: unknown setting"),
        "{message}"
    );
    assert!(
        message.contains("app.toml:2:9: class: `\\n\\u{1b}[31m` is no worker class"),
        "{message}"
    );
    assert!(!message.contains('\u{1b}'));
}

#[test]
fn a_brief_error_is_one_line() {
    let file = File {
        path: "a.toml".into(),
        text: "\nclas = 1".to_owned(),
    };
    let place = Place::File {
        file: file.into(),
        key: Some("clas".to_owned()),
        span: Some(1..5),
    };
    let problems = vec![
        Problem {
            place,
            message: "unknown".to_owned(),
        },
        Problem {
            place: Place::Flag("--bind".to_owned()),
            message: "twice".to_owned(),
        },
    ];
    assert_eq!(
        ConfigError { problems }.brief(),
        "a.toml:2:1: clas: unknown; --bind: twice"
    );
}

#[test]
fn a_file_that_cannot_be_read_again_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = |path: &Path| {
        let error = env(&[("SUPERVISOR_CONFIG", path.to_str().unwrap())]).unwrap_err();
        error.replace(path.to_str().unwrap(), "PATH")
    };
    let irregular =
        "PATH: is no regular file, and could not be read again at a reload (name a file)";
    assert_eq!(refused(&fifo), irregular);
    assert_eq!(refused(dir.path()), irregular);
    let latin = dir.path().join("latin.toml");
    std::fs::write(&latin, b"workers = 2\n# caf\xe9\n").unwrap();
    assert_eq!(
        refused(&latin),
        "PATH: line 2 is not UTF-8 (save the file as UTF-8)"
    );
    let huge = dir.path().join("huge.toml");
    std::fs::write(&huge, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
    assert_eq!(
        refused(&huge),
        "PATH: is longer than 1 MiB, so it is no configuration (check the path)"
    );
}

#[test]
fn errors_of_the_environment_name_the_variable() {
    let message = env(&[("SUPERVISOR_WORKERS", "x"), ("SUPERVISOR_BIND", ":80")]).unwrap_err();
    assert_eq!(
        message,
        "SUPERVISOR_WORKERS: `x` is no whole number (write one from 1 to 1024, a range like 2..16, or auto)\n\
         SUPERVISOR_BIND: `:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and [::]:80 for IPv6)"
    );
}

#[test]
fn a_variable_that_looks_like_a_slip_is_warned_of_and_others_are_left_alone() {
    let config = env(&[
        ("SUPERVISOR_WORKER", "3"),
        ("SUPERVISOR_ENABLED", "1"),
        ("SUPERVISOR_SERVER_URL", "x"),
    ]);
    assert_eq!(
        config.unwrap().warnings,
        ["SUPERVISOR_WORKER: no setting has this variable (did you mean SUPERVISOR_WORKERS?)"]
    );
}

#[test]
fn errors_of_the_command_line_name_the_flag() {
    let first = |typed: &[&str]| args(typed).unwrap_err().lines().next().unwrap().to_owned();
    assert_eq!(
        first(&["--workers=0"]),
        "error: invalid value '0' for '--workers <N|MIN..MAX|auto>': 0 is out of range (1 to 1024)"
    );
    assert_eq!(
        first(&["--workers", "-1"]),
        "error: invalid value '-1' for '--workers <N|MIN..MAX|auto>': -1 is out of range (1 to \
         1024)"
    );
    assert_eq!(
        first(&["--hang-timeout", "30"]),
        "error: invalid value '30' for '--hang-timeout <DURATION|off>': `30` has no unit (write it like 30s or 30ms); \
         `off` switches it off"
    );
    assert_eq!(
        first(&["--max-workers=2", "--workers=3"]),
        "--max-workers: 2 is less than the 3 workers (raise it, or leave it out)"
    );
    assert_eq!(
        first(&["--app=hello", "--", "ls"]),
        "-- PROGRAM: a program cannot serve beside the app `hello` (leave one of them out)"
    );
}

#[test]
fn a_stray_word_gets_a_tip() {
    let tip = |typed: &[&str]| {
        let error = args(typed).unwrap_err();
        error
            .lines()
            .find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned))
            .unwrap()
    };
    assert_eq!(
        tip(&["python3", "app.py"]),
        "a program comes after `--`: supervisor [OPTIONS] -- python3"
    );
    assert_eq!(
        tip(&["--workers", "8", "check"]),
        "`check` comes first: supervisor check [OPTIONS]"
    );
    assert_eq!(
        tip(&["--theads", "8"]),
        "a similar argument exists: '--threads'"
    );
}

#[test]
fn a_setting_without_effect_is_warned_of() {
    assert_eq!(
        env(&[("SUPERVISOR_THREADS", "3")]).unwrap().warnings,
        ["SUPERVISOR_THREADS: has no effect in class async (it is for class threads)"]
    );
    assert_eq!(
        args(&["--max-connections=3", "--class=sync", "--ready=after=2s"])
            .unwrap()
            .warnings,
        [
            "--max-connections: has no effect in class sync (it is for class async)",
            "--ready: has no effect on an app or a Rust service (it is for external programs)"
        ]
    );
    assert_eq!(
        args(&["--keep-alive=2s", "--ready=after=2s", "--", "ls"])
            .unwrap()
            .warnings,
        ["--keep-alive: has no effect on an external program (it is for apps and Rust services)"]
    );
    assert_eq!(
        file("[env]\nworkers = 8").unwrap().warnings,
        [
            "app.toml: env.workers is a variable for the workers (to set `workers`, move its \
             line above `[env]`)"
        ]
    );
}

#[test]
fn users_groups_and_capabilities_that_do_not_exist_are_named_with_the_remedy() {
    let message = |words: &[&str]| args(words).unwrap_err();
    for (words, expected) in [
        (
            ["--user", "nosuchuser"],
            "--user: there is no user `nosuchuser` (create it with useradd, or name another)",
        ),
        (
            ["--supervisor-user", "nosuchuser"],
            "--supervisor-user: there is no user `nosuchuser` (create it with useradd, or name \
             another)",
        ),
        (
            ["--user", "4000000000"],
            "--user: user 4000000000 is not in the user database, so its group is unknown (add \
             it there, or set group, too)",
        ),
        (
            ["--group", "nosuchgroup"],
            "--group: there is no group `nosuchgroup` (create it with groupadd, or name another)",
        ),
        (
            ["--groups", "nosuchgroup"],
            "--groups: there is no group `nosuchgroup` (create it with groupadd, or name another)",
        ),
    ] {
        assert_eq!(message(&words), expected);
    }
    let capability = message(&["--keep-cap", "CAP_FLY"]);
    assert!(
        capability.contains(
            "`CAP_FLY` is no capability (write a name of capabilities(7), like net_bind_service, \
             or all)"
        ),
        "{capability}"
    );
}

#[test]
fn a_user_brings_its_groups_and_settings_that_make_sense_for_it() {
    let config = args(&[
        "--user",
        "0",
        "--groups",
        "7",
        "--keep-cap",
        "CAP_NET_RAW",
        "--keep-cap",
        "kill",
    ])
    .unwrap();
    let privileges = &config.privileges;
    let user = privileges.user.as_ref().unwrap();
    assert_eq!(
        (user.name.as_deref(), user.uid, user.gid),
        (Some("root"), 0, Some(0))
    );
    assert!(user.groups.contains(&0));
    assert_eq!(privileges.keep.names(), ["kill", "net_raw"]);
    assert_eq!(privileges.core_dumps, CoreDumps::Abort);
    assert_eq!(args(&[]).unwrap().privileges.core_dumps, CoreDumps::On);
    let config = args(&["--user", "4000000000", "--group", "0"]).unwrap();
    assert_eq!(config.privileges.user.unwrap().uid, 4_000_000_000);
}

#[test]
fn a_program_without_a_channel_cannot_be_ready_by_it() {
    assert_eq!(
        args(&["--ready=channel"]).unwrap().warnings,
        Vec::<String>::new()
    );
    let error = args(&["--ready=channel", "--", "ls"]).unwrap_err();
    assert!(
        error.contains("--ready") && error.contains("choose auto, notify, listen or after=TIME"),
        "{error}"
    );
    let apart = |user: &str| args(&["--ready=listen", "--supervisor-user=0", user, "--", "ls"]);
    assert!(apart("--user=0").is_ok());
    assert!(
        apart("--user=65534")
            .unwrap_err()
            .contains("--ready: listen cannot look into workers of another user")
    );
    assert!(
        args(&["--ready=soon"])
            .unwrap_err()
            .contains("`soon` is no way to get ready")
    );
}
