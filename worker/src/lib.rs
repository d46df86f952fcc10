//! Placeholder.
pub struct Service;
pub fn is_worker() -> bool {
    prefork::environment::is_worker()
}
pub fn run(
    _s: impl FnOnce(&prefork::settings::WorkerSettings) -> Result<Service, String>,
) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
pub mod apps {
    pub fn by_name(_app: &str) -> Result<super::Service, String> {
        Err(String::new())
    }
    pub fn check(_app: &str) -> Result<(), String> {
        Ok(())
    }
}
