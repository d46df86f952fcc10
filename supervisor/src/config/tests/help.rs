//! The command line, its help and the table of settings agree.

use super::*;
use clap::ArgAction;
use std::collections::BTreeSet;

/// The long names of a command's own options.
fn flags(command: &clap::Command) -> BTreeSet<String> {
    let own = ["config", "check", "print", "help", "version"];
    let named = command
        .get_arguments()
        .filter(|arg| !arg.is_positional() && !own.contains(&arg.get_id().as_str()));
    named
        .map(|arg| arg.get_long().unwrap().to_owned())
        .collect()
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
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(&name))
            .unwrap();
        let help = arg.get_help().unwrap().to_string();
        let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
        assert!(
            help.contains(&format!("[default: {preset}] [env: {}", setting.variable())),
            "{help}"
        );
        assert_eq!(arg.get_help_heading(), Some(setting.heading));
        // As variable and as key it is known: what is wrong with it is its value.
        let wrong = "\u{0}";
        let message = Typed {
            env: &[(&setting.variable(), wrong)],
            ..Typed::default()
        }
        .load()
        .unwrap_err();
        assert!(
            message.starts_with(&format!("{}: ", setting.variable())),
            "{message}"
        );
        let message = brief(&format!("{name} = [[]]"));
        assert!(
            message.contains(&format!(": {name}: is a list")),
            "{message}"
        );
        let list = matches!(arg.get_action(), ArgAction::Append);
        let lists = [
            "bind",
            "env",
            "groups",
            "keep-cap",
            "read-only",
            "writable",
            "limit",
            "on-event-kinds",
            "admin",
            "agent",
        ];
        assert_eq!(list, lists.contains(&name.as_str()));
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
        for word in [
            "Listening:",
            "TTIN, TTOU",
            "reload --wait",
            "check",
            "status",
            "stop",
        ] {
            assert!(help.contains(word), "{word}");
        }
        assert!(help.contains(&format!("Usage: {}", identity.name)));
    }
    command(&Identity::supervisor()).debug_assert();
}

#[test]
fn each_act_is_reached() {
    let act = |args: &[&str]| {
        let args = ["supervisor"].iter().chain(args);
        Source::from_parts(
            &Identity::supervisor(),
            args,
            Vec::<(String, String)>::new(),
        )
        .unwrap()
        .action
    };
    assert_eq!(act(&["--workers", "8"]), Act::Serve);
    assert_eq!(act(&["--", "status"]), Act::Serve);
    assert_eq!(
        act(&["--check", "--workers", "8"]),
        Act::Check { print: false }
    );
    assert_eq!(
        act(&["check", "--workers", "8", "--", "ls"]),
        Act::Check { print: false }
    );
    assert_eq!(act(&["check", "--print"]), Act::Check { print: true });
    assert_eq!(act(&["status", "--json"]), Act::Status);
    assert_eq!(
        act(&["reload", "--wait", "--control", "/c"]),
        Act::Reload { wait: true }
    );
    assert_eq!(act(&["stop", "--now"]), Act::Stop { now: true });
    assert_eq!(act(&["man"]), Act::Man);
    assert_eq!(act(&["completions", "bash"]), Act::Completions(Shell::Bash));
}
