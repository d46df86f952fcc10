//! `supervisor check`: everything about a configuration that can be known without serving.
//!
//! A server that serves is not disturbed: nothing stays bound, no file is made, and an address that
//! the running server of this configuration has is as good as a free one.

use super::roles::{fail, print, socket_of, usage};
use crate::config::Config;
use crate::control::client::{self, ClientError};
use crate::generation::command;
use crate::generation::loader::{Loader, open_hook_program};
use crate::listen::{Free, probe};
use crate::sandbox::Confinement;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// What only serving can show.
const NOT_CHECKED: &str = "whether workers become ready, whether log files and the control socket \
                           can be made, and control groups";

/// Checks the configuration, and prints what is true of it.
pub(super) fn check(loader: Loader, effective: bool) -> ExitCode {
    let mut config = match loader.config() {
        Ok(config) => config,
        Err(error) => return usage(&error.to_string()),
    };
    let confined = Confinement::prepare(&config).and_then(|mut confinement| {
        let directory = confinement.directory(&config)?;
        let program = confinement.program(&config, || {
            loader
                .executable(&config, directory.as_ref(), false)
                .map_err(|error| error.to_string())
        })?;
        config.warnings.extend(command::unfollowed_link(&config));
        confinement.add_sandbox(&mut config, &program)?;
        Ok(confinement)
    });
    let confinement = match confined {
        Ok(confinement) => confinement,
        Err(error) => return fail(&error.to_string()),
    };
    let mut problems = Vec::new();
    if let Err(error) = open_hook_program(&config, &confinement) {
        problems.push(error.to_string());
    }
    let mut unchecked = NOT_CHECKED.to_owned();
    check_addresses(&loader, &config, &mut problems, &mut unchecked);
    if !problems.is_empty() {
        return fail(&problems.join("\nerror: "));
    }
    let remarks = config.warnings.iter().fold(String::new(), |text, warning| {
        text + "warning: " + warning + "\n"
    });
    let remarks = format!("{remarks}not checked: {unchecked}\n");
    let _ = std::io::stderr().write_all(remarks.as_bytes());
    if effective {
        print(config.render().as_bytes())
    } else {
        print(b"the configuration is valid\n")
    }
}

/// Checks that every address could be bound, or is the running server's own.
fn check_addresses(
    loader: &Loader,
    config: &Config,
    problems: &mut Vec<String>,
    unchecked: &mut String,
) {
    let mut own = None;
    let binds = [&config.binds, &config.admin.http, &config.admin.agent];
    for bind in binds.into_iter().flatten() {
        match probe(bind) {
            Ok(Free::Yes) => {}
            Ok(Free::Unknown(why)) => {
                let _ = write!(unchecked, "; whether {bind} can be bound ({why})");
            }
            Ok(Free::Occupied(addresses)) => {
                let own = own.get_or_insert_with(|| addresses_of_running_server(loader));
                let Some(own) = own else {
                    let _ = write!(
                        unchecked,
                        "; whether {bind}, which is in use, is the running server's (it cannot be \
                         asked)"
                    );
                    continue;
                };
                let others = addresses
                    .iter()
                    .filter(|(address, _)| !own.contains(address));
                problems.extend(others.map(|(_, error)| error.to_string()));
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
}

/// Returns the addresses that the running server of this configuration has: none without one.
/// `None` when there may be one that cannot be asked.
fn addresses_of_running_server(loader: &Loader) -> Option<Vec<String>> {
    match client::status(&socket_of(&loader.source)?) {
        Ok(status) => Some([status.listeners, status.admin, status.agent].concat()),
        Err(ClientError::Unreachable { error, .. }) => matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory
        )
        .then(Vec::new),
        Err(_) => None,
    }
}
