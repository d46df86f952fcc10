//! Which events a program is started for: `--on-event`, `--on-event-kinds`, `--on-event-timeout`.

use super::reader::{ConfigValue, InvalidValue, invalid};
use super::toml_text::quoted;
use std::path::PathBuf;
use std::time::Duration;

/// Every kind of event, and whether it is *notable*: which start the program by default.
///
/// A test keeps it complete; `docs/control.md` tells what each means.
pub(crate) const KINDS: &[(&str, bool)] = &[
    ("admin-died", true),
    ("degraded", true),
    ("died", true),
    ("drain-timeout", false),
    ("draining", false),
    ("draining-all", true),
    ("holding", false),
    ("hung", true),
    ("ignored", false),
    ("leaving", false),
    ("no-memory", true),
    ("not-accepting", true),
    ("not-replaced", true),
    ("pre-stop", true),
    ("protocol-violation", true),
    ("ready", false),
    ("recovered", true),
    ("recycling", false),
    ("released", false),
    ("reload-began", false),
    ("reload-failed", true),
    ("reload-waits", false),
    ("reloaded", true),
    ("resized", false),
    ("restarting", false),
    ("resumed", false),
    ("scaled", false),
    ("server-ready", true),
    ("stalled", false),
    ("start-timeout", true),
    ("starting", false),
    ("startup-failed", true),
    ("stopping", true),
    ("stranded", false),
    ("supervisor-stalled", false),
    ("upgrade-failed", true),
    ("upgraded", true),
];

/// The names of the kinds.
const NAMES: [&str; KINDS.len()] = {
    let mut names = [""; KINDS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = KINDS[index].0;
        index += 1;
    }
    names
};

/// What is started for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// The program, if any: a path, or a name to be looked for in `PATH`.
    pub program: Option<PathBuf>,
    /// The kinds of events; none: the notable ones.
    pub kinds: Vec<&'static str>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Hooks {
    /// Whether it is started for an event of this kind and level. Of deaths, those that are as they
    /// should be are not notable.
    ///
    /// ```
    /// use prefork_supervisor::internals::Hooks;
    /// let notable = Hooks {
    ///     program: Some("/bin/page".into()),
    ///     kinds: Vec::new(),
    ///     timeout: Default::default(),
    /// };
    /// assert!(notable.want("died", log::Level::Error) && !notable.want("died", log::Level::Info));
    /// let chosen = Hooks { kinds: vec!["died"], ..notable };
    /// assert!(chosen.want("died", log::Level::Info));
    /// assert!(!chosen.want("reloaded", log::Level::Info));
    /// ```
    pub fn want(&self, kind: &str, level: log::Level) -> bool {
        if self.program.is_none() {
            return false;
        }
        if !self.kinds.is_empty() {
            return self.kinds.contains(&kind);
        }
        let notable = KINDS
            .iter()
            .any(|(known, notable)| *known == kind && *notable);
        notable && (kind != "died" || level <= log::Level::Warn)
    }
}

/// A kind of event, as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Kind;

impl ConfigValue for Kind {
    type Resolved = &'static str;
    const EXAMPLE: &'static str = "\"died reload-failed\"";
    const CHOICES: &'static [&'static str] = &NAMES;

    fn read(text: &str) -> Result<&'static str, InvalidValue> {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == text)
            .map(|(kind, _)| *kind)
            .ok_or_else(|| {
                let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
                invalid!(
                    "`{text}` is no kind of event (they are {})",
                    kinds.join(", ")
                )
            })
    }

    fn write(value: &&'static str) -> String {
        quoted(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Every word that stands where the source makes an event of it.
    fn kinds_in(directory: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).expect("the source") {
            let path = entry.expect("the source").path();
            if path.is_dir() {
                kinds_in(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for make in ["EventRecord::new(", "about(", "of_worker("] {
                for call in text.split(make).skip(1) {
                    let word = call
                        .trim_start()
                        .strip_prefix('"')
                        .and_then(|rest| rest.split('"').next());
                    found.extend(word.map(str::to_owned));
                }
            }
        }
    }

    #[test]
    fn every_kind_of_event_is_known_and_documented() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        kinds_in(&root.join("src"), &mut found);
        found.sort();
        found.dedup();
        let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(found, known);
        let schema = std::fs::read_to_string(root.join("../docs/control.md")).expect("the schema");
        let missing: Vec<&&str> = known
            .iter()
            .filter(|kind| !schema.contains(&format!("| `{kind}` |")))
            .collect();
        assert_eq!(missing, [&""; 0], "not in docs/control.md");
    }
}
