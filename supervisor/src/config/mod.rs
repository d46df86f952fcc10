//! The configuration: what was typed → what is true.
//!
//! [`Source`] holds the command line and the environment of this process. [`Source::load`] reads
//! the file that they name, lays the four layers over each other (flag, environment, file,
//! default), checks everything that can be known without serving, and returns a [`Config`]. Nothing
//! downstream checks again. A reload calls it again.
//!
//! The module deliberately does not know how anything is done that it configures: it opens no
//! socket, starts no process and logs nothing.
//!
//! Start reading at the table in `options.rs`; each option is one row there, and the module's
//! documentation says what else a new one needs.

mod admin;
mod bind;
mod cgroups;
mod clean_exits;
mod command_line;
mod derived;
mod error;
mod file;
mod hooks;
mod layer;
mod options;
mod privileges;
mod reader;
mod ready;
mod render;
mod resolve;
pub(crate) mod runtime_directory;
mod sandbox;
mod source;
#[cfg(test)]
mod tests;
mod toml_text;
mod types;
mod values;

pub(crate) use admin::Admin;
pub use bind::Bind;
pub(crate) use clean_exits::CleanExits;
pub use command_line::Identity;
pub(crate) use command_line::{Subcommand, completions, man};
pub(crate) use error::{ConfigError, USAGE};
pub(crate) use file::nearest;
pub use hooks::Hooks;
pub use layer::Surroundings;
pub use options::Config;
pub(crate) use privileges::{Account, Capabilities, CoreDumps, Privileges};
pub(crate) use ready::Ready;
pub(crate) use sandbox::{Limit, Sandbox, SandboxMode, Seccomp};
pub(crate) use source::Invocation;
pub use source::Source;
pub(crate) use types::{
    AccessTarget, Cgroups, Control, KillMode, LogFormat, LogSettings, Program, Surge, WorkerStderr,
};
pub(crate) use values::NEVER;
