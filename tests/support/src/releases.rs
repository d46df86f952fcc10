//! Releases in directories of their own, and the symbolic link `current` that leads to one of them:
//! a deployment as Capistrano does it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// The releases of one program.
#[derive(Debug)]
pub struct Releases {
    root: PathBuf,
}

impl Releases {
    /// Begins in a directory that exists.
    ///
    /// # Panics
    /// When it does not.
    pub fn new(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().canonicalize().expect("the directory exists");
        Self { root }
    }

    /// The link.
    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    /// A release's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Adds a release: `app.py`, which can be executed and answers with the release's name, and
    /// `bin/python3`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn add(&self, name: &str) {
        let program = std::fs::read_to_string(crate::program("minimal.py")).expect("the program");
        let body = "os.environ.get(\"BODY\", \"Hello from Python\")";
        assert!(program.contains(body), "the program has another body");
        let program = program.replace(body, &format!("\"{name}\""));
        self.write(
            name,
            &format!("#!/usr/bin/python3\n{program}"),
            "/usr/bin/python3",
        );
    }

    /// Adds a release whose program cannot start.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn add_broken(&self, name: &str) {
        let program = format!("#!/usr/bin/python3\nraise SystemExit('{name} is broken')\n");
        self.write(name, &program, "/bin/false");
    }

    fn write(&self, name: &str, program: &str, python: &str) {
        let directory = self.path(name);
        std::fs::create_dir_all(directory.join("bin")).expect("a directory of our own");
        symlink(python, directory.join("bin/python3")).expect("a link of our own");
        let file = directory.join("app.py");
        std::fs::write(&file, program).expect("a file of our own");
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&file, all).expect("a file of our own");
    }

    /// Makes the link lead to a release, in one step.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn deploy(&self, name: &str) {
        let new = self.root.join(".current.new");
        symlink(name, &new).expect("a link of our own");
        std::fs::rename(&new, self.current()).expect("a link of our own");
    }

    /// Removes a release.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.path(name)).expect("a release of our own");
    }
}
