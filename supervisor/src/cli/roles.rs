//! Which role this process plays: supervisor, worker, or a client of a running server.

use super::check::check;
use super::own_path::own_path;
use crate::api::request::Request;
use crate::config::runtime_directory::{default_path, runtime_directory};
use crate::config::{Control, Identity, Invocation, Source, Subcommand, USAGE};
use crate::control::client::ClientError;
use crate::control::{OpenError, client, discovery};
use crate::generation::loader::Loader;
use crate::helpers::{memory_sampler, readiness_probe};
use crate::listen::{Listeners, StoredSockets};
use crate::process::signals;
use crate::sandbox::{Dropped, become_user, raise_open_files, warn_of_root};
use crate::server::Server;
use crate::upgrade::Task;
use crate::{admin, config, logging, top, upgrade};
use log::{error, info, warn};
use prefork_protocol::environment::{Inherited, take_listeners};
use prefork_worker::Service;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The whole program of a server with a service of its own. Call it first in `main`, with nothing
/// opened and no thread started before.
pub fn main(service: Service) -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name
        .as_deref()
        .and_then(Path::file_name)
        .map_or("server".into(), |name| name.to_string_lossy());
    // A worker's first word is its title; it needs no name of its own.
    play(&Identity::linked(name), Some(service))
}

/// The whole program of a server that runs stock apps and other programs.
pub fn stock() -> ExitCode {
    play(&Identity::supervisor(), None)
}

fn play(identity: &Identity, service: Option<Service>) -> ExitCode {
    signals::survive_full_files();
    if let Some(task) = readiness_probe::task() {
        return task.perform();
    }
    if let Some(task) = admin::task() {
        return task.perform();
    }
    if let Some(task) = memory_sampler::task() {
        return task.perform();
    }
    if let Some(task) = upgrade::task() {
        return take_over(identity, task);
    }
    if prefork_worker::is_worker() {
        logging::start_in_worker();
        return prefork_worker::run(|settings| match service {
            Some(service) => Ok(service),
            None => prefork_worker::apps::by_name(&settings.app),
        });
    }
    signals::hold_until_installed();
    let inherited = take_listeners();
    let invocation = Source::from_process(identity).unwrap_or_else(|error| error.exit());
    let inherited = match inherited {
        Ok(inherited) => inherited,
        Err(error) => return fail(&format!("cannot take the inherited sockets: {error}")),
    };
    let (inherited, stored) = StoredSockets::sort(inherited);
    let Invocation {
        subcommand,
        json,
        source,
    } = invocation;
    if !matches!(subcommand, Subcommand::Serve) {
        signals::release();
    }
    match subcommand {
        Subcommand::Serve => serve(identity, source, inherited, stored),
        Subcommand::Check { print } => check(loader(source, &inherited), print),
        Subcommand::Status { check: false } => reach(&source, json, &Request::Status {}),
        Subcommand::Status { check: true } => {
            at_socket(&source, |path| client::check_ready(path, json))
        }
        Subcommand::Events {
            follow,
            recent,
            since,
        } => reach(
            &source,
            json,
            &Request::Events {
                follow,
                since,
                recent,
            },
        ),
        Subcommand::Scale(workers) => reach(&source, json, &Request::Scale { workers }),
        Subcommand::RestartWorker(slot) => {
            reach(&source, json, &Request::RestartWorker { slot, wait: true })
        }
        Subcommand::Drain(slot) => reach(&source, json, &Request::Drain { slot, wait: true }),
        Subcommand::Config => reach(&source, json, &Request::Config {}),
        Subcommand::Top {
            interval,
            batch,
            count,
        } => {
            let options = top::Options {
                interval,
                batch,
                json,
                count,
            };
            match find(&source).map(|path| top::run(&path, options)) {
                Err(code) => code,
                Ok(Ok(())) => ExitCode::SUCCESS,
                Ok(Err(error)) => fail(&error.to_string()),
            }
        }
        Subcommand::Reload { wait } => reach(&source, json, &Request::Reload { wait }),
        Subcommand::Upgrade { wait } => reach(&source, json, &Request::Upgrade { wait }),
        Subcommand::Stop { now, wait: false } => reach(&source, json, &Request::Stop { now }),
        Subcommand::Stop { now, wait: true } => {
            at_socket(&source, |path| client::stop_and_wait(path, now, json))
        }
        Subcommand::Man => print(&config::man(identity)),
        Subcommand::Completions(shell) => print(&config::completions(identity, shell)),
    }
}

fn serve(
    identity: &Identity,
    source: Source,
    inherited: Vec<Inherited>,
    stored: StoredSockets,
) -> ExitCode {
    let loader = loader(source, &inherited);
    let config = match loader.config() {
        Ok(config) => config,
        Err(error) => return usage(&error.to_string()),
    };
    if let Err(reason) = logging::start(&config.log) {
        return fail(&reason);
    }
    info!(
        "{} {} (pid {})",
        identity.name,
        identity.version,
        std::process::id()
    );
    if let Some((before, now)) = raise_open_files() {
        info!(
            "raised the limit of open files from {before} to {now}; external programs start with \
             {before} (--limit nofile=N sets another)"
        );
    }
    // Before anything is bound: only sockets of one user can share an address.
    match become_user(&config) {
        Ok(None) => {}
        Ok(Some(Dropped {
            remark,
            warns: false,
        })) => info!("{remark}"),
        Ok(Some(Dropped {
            remark,
            warns: true,
        })) => warn!("{remark}"),
        Err(reason) => {
            error!("cannot start: {reason}");
            return ExitCode::FAILURE;
        }
    }
    if let Some(warning) = warn_of_root(&config) {
        warn!("{warning}");
    }
    let listeners = Listeners::new(runtime_directory(), inherited).with_stored(stored);
    let cannot_start = |reason: &dyn std::fmt::Display| {
        error!("cannot start: {reason}");
        logging::finish();
        ExitCode::FAILURE
    };
    let mut server = match Server::new(loader, identity.name.clone(), listeners) {
        Ok(server) => server,
        Err(reason) => return cannot_start(&reason),
    };
    if let Err(error) = open_control(&mut server, &config) {
        return cannot_start(&error);
    }
    ExitCode::from(server.run())
}

/// Opens the control socket. A server without one serves all the same, unless its operator would
/// reach another server in its place, or relies on the socket that was asked for.
fn open_control(server: &mut Server, config: &config::Config) -> Result<(), OpenError> {
    let name = config.name.as_deref();
    let opened = match &config.control {
        Control::Off => return Ok(()),
        Control::Path(path) => return server.open_control(path),
        Control::Default => default_path(name)
            .map_err(OpenError::from)
            .and_then(|path| server.open_control(&path)),
    };
    match opened {
        Err(error) if name.is_none() && !error.is_in_use() => {
            info!("{error}; going on without one");
            Ok(())
        }
        opened => opened,
    }
}

/// Goes on with a running server that another version of this program has handed over, or checks
/// whether we could.
fn take_over(identity: &Identity, task: Task) -> ExitCode {
    let (mut server, resumption) = Server::take_over(&task, identity);
    if task.check {
        // Who has become another user may not be able to open again what is open now, and would go
        // on without a log.
        if let Some(Err(reason)) = server.log_settings().map(logging::can_start) {
            upgrade::give_up(&reason);
        }
        task.pass();
    }
    if let Some(settings) = server.log_settings()
        && let Err(reason) = logging::start(settings)
    {
        // The server is worth more than its log.
        let _ = writeln!(std::io::stderr(), "error: {reason}");
    }
    let failed = task.complete();
    server.resume(resumption, failed.as_deref());
    ExitCode::from(server.run())
}

fn loader(source: Source, inherited: &[Inherited]) -> Loader {
    Loader {
        source,
        own_path: own_path(),
        inherited: inherited.iter().map(|socket| socket.name.clone()).collect(),
    }
}

/// Returns where the running server's control socket is, if it has one.
pub(super) fn socket_of(source: &Source) -> Option<PathBuf> {
    match source.reach().ok()? {
        (Control::Off, _) => None,
        (Control::Path(path), _) => Some(path),
        (Control::Default, name) => {
            discovery::of_running_server(source.file(), name.as_deref()).ok()
        }
    }
}

/// Finds the running server's control socket.
fn find(source: &Source) -> Result<PathBuf, ExitCode> {
    let path = match source.reach() {
        Err(error) => return Err(usage(&error.to_string())),
        Ok((Control::Off, _)) => {
            return Err(fail(
                "the control socket is switched off (name one with --control)",
            ));
        }
        Ok((Control::Path(path), _)) => Ok(path),
        Ok((Control::Default, name)) => {
            discovery::of_running_server(source.file(), name.as_deref())
        }
    };
    path.map_err(|error| fail(&error.to_string()))
}

/// Asks the running server for something, and tells what it answers.
fn reach(source: &Source, json: bool, request: &Request) -> ExitCode {
    at_socket(source, |path| client::ask(path, request, json))
}

/// Does something at the running server's control socket.
fn at_socket(source: &Source, act: impl FnOnce(&Path) -> Result<(), ClientError>) -> ExitCode {
    match find(source).map(|path| act(&path)) {
        Err(code) => code,
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail(&error.to_string()),
    }
}

pub(super) fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

pub(super) fn fail(reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {reason}");
    ExitCode::FAILURE
}

pub(super) fn usage(reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {reason}");
    ExitCode::from(u8::try_from(USAGE).unwrap_or(2))
}
