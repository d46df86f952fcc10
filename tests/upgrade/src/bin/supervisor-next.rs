//! The next version of the supervisor: the same sources, compiled with the feature `next`.

fn main() -> std::process::ExitCode {
    prefork_supervisor_next::stock()
}
