//! The text of a configuration file: it is valid, or every problem has a message; and what is valid
//! can be written down and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prefork_supervisor::internals::{Config, Identity, Source, Surroundings};
use prefork_worker::apps::AppError;
use std::sync::OnceLock;

fn load(text: &str) -> Result<Config, String> {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    let source = SOURCE.get_or_init(|| {
        let arguments = ["supervisor", "--config", "fuzz.toml"];
        let none: [(&str, &str); 0] = [];
        Source::from_parts(&Identity::supervisor(), arguments, none)
            .expect("a command line")
            .source
    });
    let check_app = |app: &str| {
        if app == "hello" {
            Ok(())
        } else {
            Err(AppError::Unknown(app.to_owned()))
        }
    };
    let around = Surroundings {
        cpus: 2,
        inherited: &["web".to_owned()],
        check_app: &check_app,
    };
    source
        .with_text(Some(text.to_owned()))
        .load(&around)
        .map_err(|error| error.to_string())
}

fuzz_target!(|text: &str| {
    match load(text) {
        Err(message) => assert!(!message.is_empty()),
        Ok(config) => {
            let rendered = config.render();
            let again = load(&rendered).unwrap_or_else(|error| panic!("{error}\n{rendered}"));
            let again = Config {
                warnings: config.warnings.clone(),
                ..again
            };
            assert_eq!(again, config, "{rendered}");
        }
    }
});
