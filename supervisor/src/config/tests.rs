//! The whole way from what was typed to what is true. What a user reads is compared to the letter.
#![allow(clippy::unwrap_used)]

use super::*;
use clap::ArgAction;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::Path;

/// A command line, an environment and a file, all made up.
#[derive(Default)]
struct Typed<'a> {
    args: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
    inherited: &'a [&'a str],
    linked: bool,
}

impl Typed<'_> {
    /// The configuration, or what the user reads; the file is called `app.toml` there.
    fn load(&self) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        let mut args = vec!["supervisor".to_owned()];
        if let Some(text) = self.file {
            std::fs::write(&path, text).unwrap();
            args.push(format!("--config={}", path.display()));
        }
        args.extend(self.args.iter().map(ToString::to_string));
        let invocation = Source::from_parts(&self.identity(), args, self.env.iter().copied())
            .map_err(|error| error.to_string())?;
        let inherited: Vec<_> = self.inherited.iter().map(ToString::to_string).collect();
        let around = Surroundings { cpus: 2, inherited: &inherited, check_app: &check_app };
        let here = format!("{}/", dir.path().display());
        match invocation.source.load(&around) {
            Ok(mut config) => {
                config.warnings.iter_mut().for_each(|warning| *warning = warning.replace(&here, ""));
                Ok(config)
            }
            Err(error) => Err(error.to_string().replace(&here, "")),
        }
    }

    fn identity(&self) -> Identity {
        if self.linked { Identity::linked("myapp") } else { Identity::supervisor() }
    }
}

fn check_app(app: &str) -> Result<(), String> {
    if app == "hello" { Ok(()) } else { Err(format!("`{app}` is no app")) }
}

fn args(args: &[&str]) -> Result<Config, String> {
    Typed { args, ..Typed::default() }.load()
}

fn env(env: &[(&str, &str)]) -> Result<Config, String> {
    Typed { env, ..Typed::default() }.load()
}

fn file(text: &str) -> Result<Config, String> {
    Typed { file: Some(text), ..Typed::default() }.load()
}

/// What the user reads about a file, without the lines that show it.
fn brief(text: &str) -> String {
    let error = file(text).unwrap_err();
    let shown = |line: &&str| line.starts_with("app.toml");
    error.lines().filter(shown).collect::<Vec<_>>().join("\n")
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file = Some("workers = 5\nthreads = 6\nclass = \"threads\"\nbacklog = 7\n");
    let env = &[("SUPERVISOR_WORKERS", "3"), ("SUPERVISOR_THREADS", "4")];
    let config = Typed { args: &["--workers=2"], env, file, ..Typed::default() }.load().unwrap();
    assert_eq!((config.workers, config.threads, config.backlog), (2, 4, 7));
    assert_eq!(config.max_connections, 10_000, "the default, which nobody overrides");
}

#[test]
fn nothing_typed_gives_the_documented_defaults() {
    let config = args(&[]).unwrap();
    assert_eq!(config.binds, [Bind::Tcp { host: "127.0.0.1".to_owned(), port: 8000 }]);
    assert_eq!((config.workers, config.max_workers, config.backlog), (2, 8, 4096));
    assert_eq!(config.program, Program::App("hello".to_owned()));
    assert_eq!(config.class(), Class { threads: 1, connections: 10_000 });
    assert_eq!((config.start_timeout, config.hang_timeout), (seconds(60), Some(seconds(30))));
    assert_eq!((config.request_timeout, config.graceful_timeout), (None, seconds(30)));
    assert_eq!((config.surge, config.probation), (Surge::All, seconds(2)));
    assert_eq!((config.stop_signal, config.ready_after), (Signal::SIGTERM, seconds(1)));
    assert_eq!((config.control, config.warnings), (Control::Default, Vec::<String>::new()));
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Typed { env: &[("SUPERVISOR_WORKERS", "")], file: Some("workers = 5"), ..Typed::default() };
    assert_eq!(config.load().unwrap().workers, 5);
}

#[test]
fn a_list_in_an_upper_layer_replaces_the_lower_one_but_variables_add_up() {
    let file = Some("bind = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nenv = { A = 1, B = \" file \" }");
    let env = &[("SUPERVISOR_BIND", "127.0.0.1:3 [::1]:3"), ("SUPERVISOR_ENV", "A=env C=env")];
    let config = Typed { args: &["--env=C=flag"], env, file, ..Typed::default() }.load().unwrap();
    let binds: Vec<_> = config.binds.iter().map(ToString::to_string).collect();
    assert_eq!(binds, ["127.0.0.1:3", "[::1]:3"]);
    let env: Vec<_> = config.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(env, ["A=env", "B= file ", "C=flag"]);
}

#[test]
fn more_workers_than_eight_leave_room_to_scale() {
    assert_eq!(args(&["--workers=40"]).unwrap().max_workers, 80);
    assert_eq!(args(&["--workers=1000"]).unwrap().max_workers, 1024);
}

#[test]
fn the_file_is_read_again_at_each_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    std::fs::write(&path, "workers = 3").unwrap();
    let args = ["supervisor".as_ref(), "--config".as_ref(), path.as_os_str()];
    let source =
        Source::from_parts(&Identity::supervisor(), args, Vec::<(OsString, OsString)>::new()).unwrap().source;
    let around = Surroundings { cpus: 2, inherited: &[], check_app: &check_app };
    assert_eq!(source.load(&around).unwrap().workers, 3);
    std::fs::write(&path, "workers = 4").unwrap();
    assert_eq!(source.load(&around).unwrap().workers, 4);
    std::fs::remove_file(&path).unwrap();
    let error = source.load(&around).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}: cannot be opened: no such file or directory (check the path)", path.display())
    );
}

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

#[test]
fn each_slip_in_a_file_gets_a_sentence() {
    let table = [
        ("workers = ", "1:11: the value is missing (write it after the `=`, or leave the line out)"),
        ("class = async", "1:9: text needs quotes (write it like \"async\")"),
        ("workers = 1\nworkers = 2", "2:1: is set twice in this file (leave one out)"),
        ("a b = 3", "1:3: key with no value, expected `=` (the file is TOML; write lines like workers = 8)"),
        (
            "[server]\nworkers = 2",
            "1:2: server: unknown section (the only one is [env]; every other setting stands above it)",
        ),
        ("max_workers = 3", "1:1: max_workers: unknown setting (did you mean `max-workers`?)"),
        ("comand = [\"a\"]", "1:1: comand: unknown setting (did you mean `command`?)"),
        (
            "xyzzy = 3",
            "1:1: xyzzy: unknown setting (the settings are the options of --help, without their dashes)",
        ),
        ("config = \"x\"", "1:1: config: a file cannot name another one (leave the line out)"),
        (
            "hang-timeout = 30",
            "1:16: hang-timeout: `30` has no unit (write it like 30s or 30ms); `off` switches it off",
        ),
        (
            "hang-timeout = false",
            "1:16: hang-timeout: `false` is no duration (write it like 30s, 500ms or 1m 30s); `off` switches it off",
        ),
        ("graceful-timeout = \"2 weeks\"", "1:20: graceful-timeout: 2 weeks is out of range (0s to 1day)"),
        (
            "bind = [\"[::1]:80\", \"*:80\"]",
            "1:21: bind: `*:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and [::]:80 for IPv6)",
        ),
        ("bind = []", "1:8: bind: the list is empty (name an address, or leave it out)"),
        ("bind = [\"[::1]:80\", \"[0::1]:80\"]", "1:8: bind: [::1]:80 is named twice (leave one out)"),
        ("bind = \"fd://web\"", "1:8: bind: no inherited socket is named web (none was inherited)"),
        ("workers = [1]", "1:11: workers: is a list here; write one value, like 8"),
        ("[workers]", "1:1: workers: is a table or a date here; write one value, like 8"),
        ("workers = 99999999999999999999", "1:11: workers: 99999999999999999999 is out of range (1 to 1024)"),
        ("workers = 1.5", "1:11: workers: `1.5` is no whole number (write one from 1 to 1024)"),
        (
            "[env]\nLISTEN_FDS = 1",
            "1:1: env: LISTEN_FDS is set for each worker by the supervisor itself (choose another name)",
        ),
        ("env = \"A\"", "1:7: env: `A` sets no variable (write it like KEY=VALUE)"),
        ("command = \"a b\"", "1:11: command: is no list of words; write it like [\"python3\", \"app.py\"]"),
        ("command = []", "1:11: command: is no list of words; write it like [\"python3\", \"app.py\"]"),
        (
            "command = [\"a\"]\napp = \"hello\"",
            "1:11: command: a program cannot serve beside the app `hello` (leave one of them out)",
        ),
        ("app = \"helo\"", "1:7: app: `helo` is no app"),
        (
            "workers = 4\nmax-workers = 2",
            "2:15: max-workers: 2 is less than the 4 workers (raise it, or leave it out)",
        ),
        ("surge = 0", "1:9: surge: `0` is neither `all` nor a number from 1 to 1024"),
        (
            "stop-signal = \"KILL\"",
            "1:15: stop-signal: SIGKILL cannot be caught, so no worker could drain (choose TERM, QUIT or INT; KILL \
             follows at graceful-timeout by itself)",
        ),
        (
            "stop-signal = \"15\"",
            "1:15: stop-signal: `15` is no signal (write a name, like TERM, QUIT or INT)",
        ),
        ("max-head = \"1KB\"", "1:12: max-head: 1KB is out of range (8KiB to 16MiB)"),
        (
            "max-body = \"1TB\"",
            "1:12: max-body: `1TB` is no size (write it like 64KiB, 10MB or 65536); `off` switches it off",
        ),
        ("directory = \"/none\"", "1:13: directory: /none is no directory (make it, or name another)"),
        ("control = \"/run/\"", "1:11: control: /run/ is a directory (name the socket in it)"),
        ("class = \"fast\"", "1:9: class: `fast` is no worker class (choose sync, threads or async)"),
        (
            "log-level = \"loud\"",
            "1:13: log-level: `loud` is no log level (choose off, error, warn, info, debug or trace)",
        ),
        ("log-format = \"xml\"", "1:14: log-format: `xml` is no log format (choose text or json)"),
        ("log-file = \"\"", "1:12: log-file: `` is no path"),
    ];
    for (text, message) in table {
        assert_eq!(brief(text), format!("app.toml:{message}"), "{text}");
    }
}

#[test]
fn control_characters_of_a_file_reach_neither_terminal_nor_log() {
    let message = file("\"\\u001b\" = 1\nclass = \"\\n\\u001b[31m\"").unwrap_err();
    assert!(message.contains("app.toml:1:1: \\u{1b}: unknown setting"), "{message}");
    assert!(message.contains("app.toml:2:9: class: `\\n\\u{1b}[31m` is no worker class"), "{message}");
    assert!(!message.contains('\u{1b}'));
}

#[test]
fn a_brief_error_is_one_line() {
    let file = File { path: "a.toml".into(), text: "\nclas = 1".to_owned() };
    let place = Place::File { file: file.into(), key: Some("clas".to_owned()), span: Some(1..5) };
    let problems = vec![
        Problem { place, message: "unknown".to_owned() },
        Problem { place: Place::Flag("--bind".to_owned()), message: "twice".to_owned() },
    ];
    assert_eq!(ConfigError { problems }.brief(), "a.toml:2:1: clas: unknown; --bind: twice");
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
    let irregular = "PATH: is no regular file, and could not be read again at a reload (name a file)";
    assert_eq!(refused(&fifo), irregular);
    assert_eq!(refused(dir.path()), irregular);
    let latin = dir.path().join("latin.toml");
    std::fs::write(&latin, b"workers = 2\n# caf\xe9\n").unwrap();
    assert_eq!(refused(&latin), "PATH: line 2 is not UTF-8 (save the file as UTF-8)");
    let huge = dir.path().join("huge.toml");
    std::fs::write(&huge, vec![b'\n'; 1024 * 1024 + 1]).unwrap();
    assert_eq!(refused(&huge), "PATH: is longer than 1 MiB, so it is no configuration (check the path)");
}

#[test]
fn errors_of_the_environment_name_the_variable() {
    let message = env(&[("SUPERVISOR_WORKERS", "x"), ("SUPERVISOR_BIND", ":80")]).unwrap_err();
    assert_eq!(
        message,
        "SUPERVISOR_WORKERS: `x` is no whole number (write one from 1 to 1024)\n\
         SUPERVISOR_BIND: `:80` names no host (for every address bind 0.0.0.0:80 for IPv4 and [::]:80 for IPv6)"
    );
}

#[test]
fn a_variable_that_looks_like_a_slip_is_warned_of_and_others_are_left_alone() {
    let config =
        env(&[("SUPERVISOR_WORKER", "3"), ("SUPERVISOR_ENABLED", "1"), ("SUPERVISOR_SERVER_URL", "x")]);
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
        "error: invalid value '0' for '--workers <N>': 0 is out of range (1 to 1024)"
    );
    assert_eq!(
        first(&["--workers", "-1"]),
        "error: invalid value '-1' for '--workers <N>': -1 is out of range (1 to 1024)"
    );
    assert_eq!(
        first(&["--hang-timeout", "30"]),
        "error: invalid value '30' for '--hang-timeout <TIME>': `30` has no unit (write it like 30s or 30ms); \
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
        error.lines().find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned)).unwrap()
    };
    assert_eq!(tip(&["python3", "app.py"]), "a program comes after `--`: supervisor [OPTIONS] -- python3");
    assert_eq!(tip(&["--workers", "8", "check"]), "`check` comes first: supervisor check [OPTIONS]");
    assert_eq!(tip(&["--theads", "8"]), "a similar argument exists: '--threads'");
}

#[test]
fn the_highest_layer_that_names_a_program_or_an_app_decides() {
    let file = Some("command = [\"python3\", \"app.py\"]");
    let command = |words: &[&str]| Program::Command(words.iter().map(OsString::from).collect());
    let program = |args, env| Typed { args, env, file, ..Typed::default() }.load().unwrap().program;
    assert_eq!(program(&[], &[]), command(&["python3", "app.py"]));
    assert_eq!(program(&["--app=hello"], &[]), Program::App("hello".to_owned()));
    assert_eq!(program(&[], &[("SUPERVISOR_APP", "hello")]), Program::App("hello".to_owned()));
    assert_eq!(program(&["--", "ls", "--all"], &[("SUPERVISOR_APP", "x")]), command(&["ls", "--all"]));
}

#[test]
fn a_linked_service_refuses_an_app_and_a_program() {
    let refused = |args, file| Typed { args, file, linked: true, ..Typed::default() }.load().unwrap_err();
    let why = "this program serves a service of its own (leave it out)";
    assert_eq!(refused(&["--app=hello"], None), format!("--app: {why}"));
    assert_eq!(refused(&["--", "ls"], None), format!("-- PROGRAM: {why}"));
    assert!(refused(&[], Some("command = [\"a\"]")).starts_with(&format!("app.toml:1:11: command: {why}")));
    let served = Typed { linked: true, ..Typed::default() }.load().unwrap();
    assert_eq!(served.program, Program::Linked);
}

#[test]
fn inherited_sockets_replace_the_default_address_only() {
    let inherited = &["web", "admin", "web"];
    let binds = |args| {
        let config = Typed { args, inherited, ..Typed::default() }.load().map(|config| config.binds);
        config.map(|binds| binds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(binds(&[]).unwrap(), "fd://admin fd://web");
    assert_eq!(binds(&["--bind=[::1]:1", "--bind=fd://web"]).unwrap(), "[::1]:1 fd://web");
    assert_eq!(
        binds(&["--bind=fd://wed"]).unwrap_err(),
        "--bind: no inherited socket is named wed (inherited: web, admin, web)"
    );
}

#[test]
fn a_setting_without_effect_is_warned_of() {
    assert_eq!(
        env(&[("SUPERVISOR_THREADS", "3")]).unwrap().warnings,
        ["SUPERVISOR_THREADS: has no effect in class async (it is for class threads)"]
    );
    assert_eq!(
        args(&["--max-connections=3", "--class=sync", "--ready-after=2s"]).unwrap().warnings,
        [
            "--max-connections: has no effect in class sync (it is for class async)",
            "--ready-after: has no effect on an app or a Rust service (it is for other programs)"
        ]
    );
    assert_eq!(
        args(&["--keep-alive=2s", "--ready-after=2s", "--", "ls"]).unwrap().warnings,
        ["--keep-alive: has no effect on another program (it is for apps and Rust services)"]
    );
    assert_eq!(
        file("[env]\nworkers = 8").unwrap().warnings,
        [
            "app.toml: env.workers is a variable for the workers (to set `workers`, move its line above `[env]`)"
        ]
    );
}

#[test]
fn port_zero_may_be_bound_twice() {
    assert_eq!(args(&["--bind=127.0.0.1:0", "--bind=127.0.0.1:0"]).unwrap().binds.len(), 2);
    assert!(args(&["--bind=unix:/a", "--bind=unix:/a,mode=0600"]).unwrap_err().contains("is named twice"));
}

#[test]
fn workers_are_told_in_milliseconds_and_beat_four_times_in_the_hang_timeout() {
    let beat = |timeout| args(&["--hang-timeout", timeout]).unwrap().worker_settings().heartbeat_ms;
    assert_eq!([beat("30s"), beat("2s"), beat("500ms"), beat("off")], [1000, 500, 125, 1000]);
    let told = args(&["--drain-idle=1s", "--max-body=1MB", "--log-level=debug"]).unwrap().worker_settings();
    assert_eq!((told.drain_idle_ms, told.max_body_bytes, told.log_level), (1000, 1_000_000, 4));
    assert_eq!((told.app.as_str(), told.request_timeout_ms), ("hello", 0));
}

#[test]
fn what_is_rendered_gives_the_same_configuration_again() {
    let round = |typed: &[&str]| {
        let mut config = args(typed).unwrap();
        let mut again = file(&config.render()).unwrap();
        // A rendered file sets everything, also what has no effect.
        (config.warnings, again.warnings) = (Vec::new(), Vec::new());
        assert_eq!(again, config, "{}", config.render());
        config.render()
    };
    round(&["--", "python3", "a \"b\"\n\\é\u{7f}"]);
    let page = round(&[
        "--bind=[::1]:1",
        "--bind=unix:/a,mode=0660,owner=u,group=g",
        "--directory=/",
        "--surge=2",
        "--control=off",
        "--probation=1500ms",
        "--hang-timeout=off",
        "--max-body=1025",
        "--log-file=/x y",
        "--log-format=json",
        "--env=A= =\t",
        "--env=a.b=2",
        "--stop-signal=sigint",
        "--drain-idle=0s",
        "--log-level=off",
    ]);
    for setting in SETTINGS.iter().map(Setting::name) {
        assert!(page.contains(&setting), "{setting} is missing in\n{page}");
    }
}

#[test]
fn each_act_is_reached() {
    let act = |args: &[&str]| {
        let args = ["supervisor"].iter().chain(args);
        Source::from_parts(&Identity::supervisor(), args, Vec::<(String, String)>::new()).unwrap().action
    };
    assert_eq!(act(&["--workers", "8"]), Act::Serve);
    assert_eq!(act(&["--", "status"]), Act::Serve);
    assert_eq!(act(&["--check", "--workers", "8"]), Act::Check { print: false });
    assert_eq!(act(&["check", "--workers", "8", "--", "ls"]), Act::Check { print: false });
    assert_eq!(act(&["check", "--print"]), Act::Check { print: true });
    assert_eq!(act(&["status", "--json"]), Act::Status { json: true });
    assert_eq!(act(&["reload", "--wait", "--control", "/c"]), Act::Reload { wait: true });
    assert_eq!(act(&["stop", "--now"]), Act::Stop { now: true });
    assert_eq!(act(&["man"]), Act::Man);
    assert_eq!(act(&["completions", "bash"]), Act::Completions(Shell::Bash));
}

#[test]
fn the_running_server_is_found_although_the_rest_of_the_file_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.toml");
    let control = |text: &str, args: &[&str], env: &[(&str, &str)]| {
        std::fs::write(&path, text).unwrap();
        let config = format!("--config={}", path.display());
        let args = ["supervisor", "status", &config].into_iter().chain(args.iter().copied());
        let source = Source::from_parts(&Identity::supervisor(), args, env.iter().copied()).unwrap().source;
        source.control().map_err(|error| error.problems.len())
    };
    let at = |path: &str| Ok(Control::Path(path.into()));
    let wrong = "workers = 0\nwrokers = 1\ncontrol = \"/file\"";
    assert_eq!(control(wrong, &[], &[]), at("/file"));
    assert_eq!(control(wrong, &[], &[("SUPERVISOR_CONTROL", "/env")]), at("/env"));
    assert_eq!(control(wrong, &["--control=/flag"], &[("SUPERVISOR_CONTROL", "/env")]), at("/flag"));
    assert_eq!(control("workers = 0", &[], &[]), Ok(Control::Default));
    assert_eq!(control("control = 3\ncontrol = 4", &[], &[]), Err(1));
    assert_eq!(control("control = \"/a/\"", &[], &[]), Err(1));
}

/// The long names of a command's own options.
fn flags(command: &clap::Command) -> BTreeSet<String> {
    let own = ["config", "check", "print", "help", "version"];
    let named =
        command.get_arguments().filter(|arg| !arg.is_positional() && !own.contains(&arg.get_id().as_str()));
    named.map(|arg| arg.get_long().unwrap().to_owned()).collect()
}

#[test]
fn every_option_is_a_flag_a_variable_and_a_key_and_its_help_says_so() {
    let mut command = command(&Identity::supervisor());
    command.build();
    let names: BTreeSet<_> = SETTINGS.iter().map(Setting::name).collect();
    assert_eq!(flags(&command), names);
    assert_eq!(flags(command.find_subcommand("check").unwrap()), names);
    for setting in SETTINGS {
        let name = setting.name();
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&name)).unwrap();
        let help = arg.get_help().unwrap().to_string();
        let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
        assert!(help.contains(&format!("[default: {preset}] [env: {}", setting.variable())), "{help}");
        assert_eq!(arg.get_help_heading(), Some(setting.heading));
        // As variable and as key it is known: what is wrong with it is its value.
        let wrong = "\u{0}";
        let message = Typed { env: &[(&setting.variable(), wrong)], ..Typed::default() }.load().unwrap_err();
        assert!(message.starts_with(&format!("{}: ", setting.variable())), "{message}");
        let message = brief(&format!("{name} = [[]]"));
        assert!(message.contains(&format!(": {name}: is a list")), "{message}");
        let list = matches!(arg.get_action(), ArgAction::Append);
        assert_eq!(list, ["bind", "env"].contains(&name.as_str()));
    }
}

#[test]
fn help_man_page_and_completions_are_complete() {
    for identity in [Identity::supervisor(), Identity::linked("myapp")] {
        let help = command(&identity).render_help().to_string();
        let man = String::from_utf8(man(&identity)).unwrap().replace('\\', "");
        let completions = String::from_utf8(completions(&identity, Shell::Bash)).unwrap();
        for name in SETTINGS.iter().map(Setting::name) {
            let shown = name != "app" || !identity.linked;
            assert_eq!(help.contains(&format!("--{name} <")), shown, "{name}");
            assert_eq!(man.contains(&format!("--{name}")), shown, "{name}");
            assert!(completions.contains(&format!("--{name}")), "{name}");
        }
        for word in ["Listening:", "TTIN, TTOU", "reload --wait", "check", "status", "stop"] {
            assert!(help.contains(word), "{word}");
        }
        assert!(help.contains(&format!("Usage: {}", identity.name)));
    }
    command(&Identity::supervisor()).debug_assert();
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in any::<String>()) {
        let _ = file(&text);
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        lines in prop::collection::vec((0..SETTINGS.len() + 2, value()), 1..6),
    ) {
        let line = |(index, value): &(usize, String)| {
            let name = SETTINGS.get(*index).map_or("command".to_owned(), Setting::name);
            format!("{name} = {value}\n")
        };
        if let Err(message) = file(&lines.iter().map(line).collect::<String>()) {
            prop_assert!(message.starts_with("app.toml:"), "{}", message);
        }
    }

    #[test]
    fn no_text_makes_a_flag_or_variable_panic(index in 0..SETTINGS.len(), text in "\\PC{0,20}|[0-9a-zé,:/=%\\[\\]-]{0,20}") {
        let setting = &SETTINGS[index];
        let _ = args(&[&format!("--{}={text}", setting.name())]);
        let _ = env(&[(&setting.variable(), &text)]);
    }
}

/// A TOML value of any kind.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}").replace("NaN", "nan")),
        any::<bool>().prop_map(|yes| yes.to_string()),
        "[0-9]{1,30}",
        Just("1979-05-27T07:32:00Z".to_owned()),
        "[ -~é€]{0,12}".prop_map(|text| format!("{text:?}")),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|list| format!("[{}]", list.join(", "))),
            inner.prop_map(|value| format!("{{ a = {value} }}")),
        ]
    })
}
