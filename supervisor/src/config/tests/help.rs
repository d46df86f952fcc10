//! The command line, its help and the table of settings agree.

use super::*;
use clap::ArgAction;
use clap::error::ErrorKind;
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
fn every_option_is_a_flag_a_variable_and_a_key_and_its_help_has_its_default() {
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
        let help = arg.get_long_help().unwrap().to_string();
        let (Preset::Given(preset) | Preset::Computed(preset)) = setting.preset;
        assert!(help.contains(&format!("[default: {preset}]")), "{help}");
        let scoped = !matches!(setting.applies, Applies::All | Applies::Stock);
        assert_eq!(help.contains(" [for "), scoped, "{help}");
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
        let help = command(&identity).render_long_help().to_string();
        let man = String::from_utf8(man(&identity)).unwrap().replace('\\', "");
        let completions = String::from_utf8(completions(&identity, Shell::Bash)).unwrap();
        for setting in SETTINGS {
            let name = setting.name();
            let of_others = matches!(setting.applies, Applies::Stock | Applies::External);
            let shown = !identity.linked || !of_others;
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
    let help = command(&Identity::linked("myapp"))
        .render_long_help()
        .to_string();
    for others in [
        "stock app",
        "external program",
        "External program",
        "-- PROGRAM",
    ] {
        assert!(!help.contains(others), "{others}: {help}");
    }
}

#[test]
fn the_short_help_fits_one_screen_and_has_the_options_that_most_people_need() {
    for identity in [Identity::supervisor(), Identity::linked("myapp")] {
        let typed = [identity.name.as_str(), "-h"];
        let none = Vec::<(String, String)>::new();
        let error = Source::from_parts(&identity, typed, none).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        let help = error.to_string();
        assert!(help.lines().count() <= 30, "{help}");
        assert!(
            help.lines().all(|line| line.chars().count() <= 100),
            "{help}"
        );
        let options = |line: &&str| line.trim_start().starts_with('-');
        assert!(help.lines().filter(options).count() <= 15, "{help}");
        for name in COMMON {
            let shown = name != "app" || !identity.linked;
            assert_eq!(
                help.contains(&format!("--{name} <")),
                shown,
                "{name}: {help}"
            );
        }
        for subcommand in command(&identity).get_subcommands() {
            let name = subcommand.get_name();
            assert!(
                subcommand.is_hide_set() || help.contains(name),
                "{name}: {help}"
            );
        }
    }
}

#[test]
fn the_rule_for_variables_is_stated_once() {
    let help = command(&Identity::supervisor())
        .render_long_help()
        .to_string();
    assert_eq!(help.matches("SUPERVISOR_NAME").count(), 1, "{help}");
    assert_eq!(help.matches("[env: ").count(), 1, "{help}");
}

#[test]
fn each_subcommand_is_reached() {
    let subcommand = |args: &[&str]| {
        let args = ["supervisor"].iter().chain(args);
        Source::from_parts(
            &Identity::supervisor(),
            args,
            Vec::<(String, String)>::new(),
        )
        .unwrap()
        .subcommand
    };
    assert_eq!(subcommand(&["--workers", "8"]), Subcommand::Serve);
    assert_eq!(subcommand(&["--", "status"]), Subcommand::Serve);
    assert_eq!(
        subcommand(&["--check", "--workers", "8"]),
        Subcommand::Check { print: false }
    );
    assert_eq!(
        subcommand(&["check", "--workers", "8", "--", "ls"]),
        Subcommand::Check { print: false }
    );
    assert_eq!(
        subcommand(&["check", "--print"]),
        Subcommand::Check { print: true }
    );
    assert_eq!(
        subcommand(&["status", "--json"]),
        Subcommand::Status { check: false }
    );
    assert_eq!(
        subcommand(&["status", "--check"]),
        Subcommand::Status { check: true }
    );
    assert_eq!(
        subcommand(&["reload", "--wait", "--control", "/c"]),
        Subcommand::Reload { wait: true }
    );
    assert_eq!(
        subcommand(&["stop", "--now", "--wait"]),
        Subcommand::Stop {
            now: true,
            wait: true
        }
    );
    assert_eq!(subcommand(&["man"]), Subcommand::Man);
    assert_eq!(
        subcommand(&["completions", "bash"]),
        Subcommand::Completions(Shell::Bash)
    );
}
