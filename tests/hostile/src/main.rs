//! A server whose worker in slot 0 is a hostile worker as long as the file that `HOSTILE` names
//! exists: the kind of hostile worker is what the file says. All others are good workers.
#![forbid(unsafe_code)]

mod row;
mod worker;

use prefork::{Body, Service};
use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The variable that names the file.
const HOSTILE: &str = "HOSTILE";
/// The variable that makes it run other programs instead of its own service.
const PROGRAMS: &str = "PROGRAMS";

fn main() -> ExitCode {
    if let Some(kind) = kind() {
        worker::play(&kind);
    }
    if std::env::var_os(PROGRAMS).is_some() {
        return prefork_supervisor::stock();
    }
    prefork::main(Service::http(|_| async {
        Ok(tower::service_fn(|_: http::Request<Body>| async {
            Ok::<_, Infallible>(http::Response::new("Hello from a good worker\n".to_owned()))
        }))
    }))
}

/// What this process is to play, if it is a worker and in slot 0.
fn kind() -> Option<String> {
    let slot = std::env::var(prefork_protocol::environment::PREFORK_SLOT).ok()?;
    let file = std::env::var_os(HOSTILE).filter(|_| slot == "0" && prefork::is_worker())?;
    let kind = std::fs::read_to_string(&file).ok()?;
    // So that the test knows it.
    let list = std::fs::File::options()
        .create(true)
        .append(true)
        .open(PathBuf::from(file).with_extension("pids"));
    let _ = writeln!(list.ok()?, "{}", std::process::id());
    Some(kind)
}
