//! The server that the chaos suite starts.

fn main() -> std::process::ExitCode {
    chaos::service::main("a")
}
