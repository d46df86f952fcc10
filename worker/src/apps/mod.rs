//! The stock apps: what a supervisor serves when it is given no program.

mod catalog;
mod echo;
mod files;
mod greeter;
mod headers;
mod hello;
mod timing;

pub use catalog::{AppError, NAMES};

use crate::service::Service;

/// Makes the service of a stock app.
///
/// # Errors
/// Fails when there is no such app, or when it cannot be served.
pub fn by_name(app: &str) -> Result<Service, AppError> {
    match app.split_once(':') {
        Some(("files", directory)) => files::service(directory),
        None => match app {
            "hello" => Ok(hello::service()),
            "sleep" => Ok(timing::service(timing::Way::Sleep)),
            "burn" => Ok(timing::service(timing::Way::Burn)),
            "block" => Ok(timing::service(timing::Way::Block)),
            "echo" => Ok(echo::service()),
            "greeter" => Ok(greeter::service()),
            "files" => Err(AppError::NoDirectory),
            _ => Err(AppError::Unknown(app.to_owned())),
        },
        Some(_) => Err(AppError::Unknown(app.to_owned())),
    }
}

/// Checks that [`by_name`] would succeed.
///
/// # Errors
/// As [`by_name`].
pub fn check(app: &str) -> Result<(), AppError> {
    by_name(app).map(drop)
}
