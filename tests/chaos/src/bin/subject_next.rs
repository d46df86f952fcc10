//! The same server as another build of it, for upgrades: its answers name another version.

fn main() -> std::process::ExitCode {
    chaos::service::main("b")
}
