//! A control group for each worker, in a directory of the kernel's own that the test makes and
//! removes.

use nix::sys::signal::Signal::SIGKILL;
use std::fs;
use std::path::{Path, PathBuf};
use testkit::load::{Plan, run, start};
use testkit::{LONG, Server, Setup, skipped, wait_until};

/// A control group of the test's own; whatever is in it is gone with it.
struct Own(PathBuf);

impl Own {
    /// `None`, with a note, where there can be none.
    fn new(test: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("every process has mounts");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let Some(point) = mount.and_then(|line| line.split(' ').nth(4)) else {
            skipped(test, "cgroup v2 is not mounted");
            return None;
        };
        let path = Path::new(point).join(format!("prefork-test-{}-{test}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                skipped(
                    test,
                    &format!("no control group can be made: {error} (needs root)"),
                );
                None
            }
        }
    }

    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<_> = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn members(&self, group: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join(group).join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn setup(&self) -> Setup {
        Server::setup(env!("CARGO_BIN_EXE_supervisor"))
            .args(["--min-ready", "100ms", "--cgroups"])
            .args([self.0.as_os_str()])
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let empty = || {
            for name in self.groups() {
                let _ = fs::remove_dir(self.0.join(name));
            }
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        };
        for _ in 0..1000 {
            if empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!(
            "the control group {} could not be removed",
            self.0.display()
        );
    }
}

#[test]
fn every_worker_has_a_group_of_its_own_through_reload_scaling_death_and_stop() {
    let Some(own) = Own::new("groups") else {
        return;
    };
    let mut server = own.setup().workers(3).start();
    let is_right = || {
        let workers = server.workers();
        let mut expected: Vec<_> = workers
            .iter()
            .map(|worker| format!("worker-{}", worker.id))
            .collect();
        expected.push("supervisor".to_owned());
        expected.sort();
        own.groups() == expected
            && own.members("supervisor") == [server.process().0]
            && workers
                .iter()
                .all(|worker| own.members(&format!("worker-{}", worker.id)) == [worker.process.0])
    };
    wait_until("a group each", LONG, is_right);
    let victim = server.workers().remove(0);
    victim.process.signal(SIGKILL);
    server.wait_for_replacement(victim.slot, victim.process);
    wait_until("the dead worker's group is gone", LONG, is_right);
    let load = start(Plan::fresh(&server.address(), 4));
    let before = server.generation();
    server.signal(nix::sys::signal::Signal::SIGHUP);
    server.wait_for_generation_after(before);
    load.finish().assert_flawless();
    let server = server;
    wait_until("the old generation's groups are gone", LONG, || {
        let mut expected: Vec<_> = server
            .workers()
            .iter()
            .map(|worker| format!("worker-{}", worker.id))
            .collect();
        expected.push("supervisor".to_owned());
        expected.sort();
        own.groups() == expected
    });
    let mut server = server;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait_exit(LONG).success());
    assert_eq!(
        own.groups(),
        ["supervisor"],
        "a process cannot remove the group that it is in"
    );
}

#[test]
fn whatever_a_worker_has_started_dies_with_it_even_in_a_session_of_its_own() {
    let Some(own) = Own::new("leftovers") else {
        return;
    };
    let program = "setsid sleep 1000 & exec sleep 1000";
    let setup = own.setup().workers(1).args(["--ready", "after=100ms"]);
    let server = setup.program(["sh", "-c", program]).start();
    let worker = server.workers().remove(0);
    let group = format!("worker-{}", worker.id);
    wait_until(
        "a process that has left the worker's process group",
        LONG,
        || own.members(&group).len() == 2,
    );
    let escaped = own
        .members(&group)
        .into_iter()
        .find(|pid| *pid != worker.process.0)
        .expect("there are two");
    worker.process.signal(SIGKILL);
    server.wait_for_replacement(worker.slot, worker.process);
    wait_until("it is dead, too", LONG, || {
        !testkit::process::Process(escaped).runs()
    });
    wait_until("its group is gone", LONG, || !own.groups().contains(&group));
}

#[test]
fn an_upgrade_in_place_keeps_the_groups() {
    let Some(own) = Own::new("upgrade") else {
        return;
    };
    let mut server = own.setup().workers(2).start();
    let output = server.command(&["upgrade", "--wait"]);
    assert!(output.status.success(), "{output:?}");
    server.reload();
    let workers = server.workers();
    wait_until("groups of the new workers only", LONG, || {
        own.groups().len() == 3
    });
    for worker in workers {
        assert_eq!(
            own.members(&format!("worker-{}", worker.id)),
            [worker.process.0]
        );
    }
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
}

#[test]
fn a_limit_that_cannot_be_set_is_logged_once_and_the_server_serves() {
    let server = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
        .workers(3)
        .args([
            "--cgroups",
            "off",
            "--worker-memory",
            "1GiB",
            "--worker-cpus",
            "1.5",
        ])
        .start();
    run(&Plan::fresh(&server.address(), 4).count(50)).assert_flawless();
    let told: Vec<_> = server
        .log()
        .lines()
        .into_iter()
        .filter(|line| line.contains("has no effect"))
        .collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].contains("worker-memory and worker-cpus"),
        "{told:?}"
    );
    let Some(own) = Own::new("limits") else {
        return;
    };
    let controllers =
        fs::read_to_string(own.0.join("cgroup.controllers")).expect("every group has it");
    let server = own
        .setup()
        .workers(3)
        .args(["--worker-memory", "512MiB"])
        .start();
    let worker = server.workers().remove(0);
    let limit = own
        .0
        .join(format!("worker-{}", worker.id))
        .join("memory.max");
    if controllers.contains("memory") {
        assert_eq!(
            fs::read_to_string(limit).expect("the limit").trim(),
            (512 << 20).to_string()
        );
    } else {
        let count = || {
            server
                .log()
                .lines()
                .iter()
                .filter(|line| line.contains("has no effect"))
                .count()
        };
        assert_eq!(count(), 1);
        assert!(
            server
                .log()
                .lines()
                .iter()
                .any(|line| line.contains("controller memory"))
        );
    }
}

#[test]
fn a_directory_that_is_no_control_group_is_refused() {
    for (path, why) in [
        ("/tmp", "no cgroup v2 directory"),
        ("/sys/fs/cgroup/nowhere", "make it with mkdir"),
    ] {
        let (status, lines) = Server::setup(env!("CARGO_BIN_EXE_supervisor"))
            .args(["--cgroups", path])
            .run();
        assert_eq!(status.code(), Some(1));
        assert!(
            lines
                .iter()
                .any(|line| line.contains(path) && line.contains(why)),
            "{lines:#?}"
        );
    }
}

/// A CPU quota of one CPU, in whichever version of control groups has the controller here.
fn quota() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("every process has mounts");
    let name = format!("prefork-test-{}-quota", std::process::id());
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = Path::new(left.split(' ').nth(4)?);
        let legacy =
            right.starts_with("cgroup ") && right.split([' ', ',']).any(|word| word == "cpu");
        let unified = right.starts_with("cgroup2 ")
            && fs::read_to_string(point.join("cgroup.subtree_control"))
                .is_ok_and(|text| text.contains("cpu"));
        if !legacy && !unified {
            return None;
        }
        let group = point.join(&name);
        fs::create_dir(&group).ok()?;
        let set = if legacy {
            fs::write(group.join("cpu.cfs_period_us"), "100000")
                .and_then(|()| fs::write(group.join("cpu.cfs_quota_us"), "100000"))
        } else {
            fs::write(group.join("cpu.max"), "100000 100000")
        };
        set.map(|()| group.clone())
            .inspect_err(|_| drop(fs::remove_dir(&group)))
            .ok()
    })
}

#[test]
fn the_number_of_workers_follows_a_quota_of_cpus() {
    let Some(group) = quota() else {
        return skipped("a quota", "no CPU quota can be set (needs root)");
    };
    let script = format!(
        "echo 0 > {}/cgroup.procs; exec \"$0\" check --print",
        group.display()
    );
    let binary = env!("CARGO_BIN_EXE_supervisor");
    let output = std::process::Command::new("sh")
        .args(["-c", &script, binary])
        .output()
        .expect("a shell");
    fs::remove_dir(&group).expect("it is empty");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().any(|line| line == "workers = 1"), "{output:?}");
}

#[test]
fn the_number_of_workers_follows_the_cpus_that_may_be_used() {
    let print = |cpus: &str| {
        let binary = env!("CARGO_BIN_EXE_supervisor");
        let output = std::process::Command::new("taskset")
            .args([
                "--cpu-list",
                cpus,
                binary,
                "check",
                "--print",
                "--workers",
                "auto",
            ])
            .output();
        let output = output.expect("util-linux is everywhere");
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .find(|line| line.starts_with("workers"))
            .map(str::to_owned)
    };
    assert_eq!(print("0").as_deref(), Some("workers = 1"));
    if std::thread::available_parallelism().is_ok_and(|count| count.get() >= 2) {
        assert_eq!(print("0,1").as_deref(), Some("workers = 2"));
    }
}
