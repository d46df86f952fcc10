//! The supervisor as it is, under a name of its own beside `supervisor-next`.

fn main() -> std::process::ExitCode {
    prefork_supervisor::stock()
}
