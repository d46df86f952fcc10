use super::descriptors::Descriptor;
use super::*;
use crate::api::request::Role;
use prefork_core::{
    Command, Core, Event, Limits, Observation, Plan, ReadinessSignal, RequestId, Share, Time,
    WorkerSample,
};
use prefork_protocol::scoreboard::Totals;
use prefork_protocol::{GenerationId, Slot, WorkerId};
use proptest::prelude::*;
use std::time::Duration;

/// The bytes of [`sample`] as the first release writes them. They never change: whatever is added
/// is appended to records, and a reader must still understand these.
const GOLDEN: &str = include_str!("golden.hex");
/// The bytes of [`grown`] as this version writes them.
const GROWN: &str = include_str!("grown.hex");

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|letter| letter.to_digit(16))
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        line.iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    };
    bytes.chunks(48).map(line).collect::<Vec<_>>().join("\n")
}

/// A worker that is silent, has a request in flight, and whose queue does not move.
fn look(now: Time) -> Observation {
    let sample = WorkerSample {
        heard: Time::from_millis(900),
        beats: true,
        greeted: true,
        done: Some(5),
        oldest: Some(Time::from_millis(800)),
        requests: Some(5),
        memory: None,
    };
    assert!(now > sample.heard);
    Observation {
        workers: vec![(WorkerId(4), sample)],
        queues: Some(vec![(Slot(3), 2), (Slot(4), 1)]),
        ..Observation::default()
    }
}

/// A core with a bit of everything: a reload under way, a drained and a failed worker, one that
/// complained.
fn core() -> Core {
    let plan = Plan {
        workers: 5,
        max_workers: 8,
        surge: 1,
        start_timeout: Duration::from_secs(60),
        heartbeat: Duration::from_millis(300),
        hang_timeout: Some(Duration::from_millis(1500)),
        request_timeout: Some(Duration::from_secs(9)),
        graceful_timeout: Duration::from_secs(30),
        min_ready: Duration::from_secs(2),
        steals: false,
        readiness: ReadinessSignal::Notify,
        max_unavailable: Share::Count(1),
        autoscale: None,
        recycle: Limits::default(),
        pre_stop_delay: Duration::ZERO,
    };
    let mut core = Core::new(GenerationId(1), plan, 42);
    let mut now = Time::from_millis(1000);
    core.step(now, Event::Tick);
    for worker in 1..=5 {
        core.step(now, Event::Ready(WorkerId(worker)));
    }
    core.step(now, Event::Command(Command::Resize(-1)));
    core.step(
        now,
        Event::Died(
            WorkerId(3),
            prefork_core::ProcessEnd::unclean("exited with status 3", prefork_core::Cause::Exit),
        ),
    );
    core.step(
        now,
        Event::Died(
            WorkerId(6),
            prefork_core::ProcessEnd::unclean("exited with status 3", prefork_core::Cause::Exit),
        ),
    );
    core.step(now, Event::Command(Command::Reload(Some(RequestId(7)))));
    core.step(
        now,
        Event::Prepared(
            GenerationId(2),
            Plan {
                hang_timeout: None,
                ..plan
            },
        ),
    );
    core.step(now, Event::Failed(WorkerId(7), "no words".to_owned()));
    core.step(now, Event::Command(Command::Reload(None)));
    now += Duration::from_millis(200);
    core.step(now, Event::Tick);
    core.step(now, Event::Observation(look(now)));
    core.step(now, Event::StoppedAccepting(WorkerId(1)));
    core.step(
        now,
        Event::ProtocolViolation(WorkerId(2), "garbage".to_owned()),
    );
    for _ in 0..12 {
        now += Duration::from_millis(50);
        core.step(now, Event::Observation(look(now)));
    }
    let text = format!("{core:?}");
    assert!(
        text.contains("stalled: Some") && text.contains("oldest: Some"),
        "a worker stalls"
    );
    assert!(
        text.contains("waits: Some"),
        "a connection waits in a retired slot"
    );
    core
}

fn sample() -> State {
    let fd = |number: RawFd| Fd(number);
    let kinds = [
        Kind::Listener,
        Kind::Channel,
        Kind::Process,
        Kind::Pipe,
        Kind::Lock,
        Kind::Memory,
        Kind::Program,
        Kind::Datagram,
        Kind::Stream,
    ];
    let descriptors = (3..).zip(kinds).map(|(number, kind)| Descriptor {
        fd: fd(number),
        kind,
        device: 8,
        inode: 1 << 40,
    });
    let hand = |id, line, alarm| HandleState {
        id: WorkerId(id),
        slot: Slot(1),
        generation: GenerationId(2),
        pid: 4711,
        pidfd: fd(20),
        exec_errors: ExecErrorsState {
            pipe: fd(21),
            program: "/bin/app".to_owned(),
            directory: String::new(),
        },
        protocol: 1,
        line,
        stderr: Some(StderrState {
            pipe: (id > 1).then_some(fd(23)),
            held: b"li".to_vec(),
            cut: (id == 3).then(|| b"<4>".to_vec()),
            stderr_tail: b"line\nli".to_vec(),
        }),
        row: (id != 4).then_some(RowState {
            memory: fd(8),
            size: 128,
            rows: 1,
        }),
        status: "well".to_owned(),
        reported_requests: None,
        reported_active: None,
        alarm,
        #[cfg(feature = "next")]
        novelty: Vec::new(),
    };
    let channel = |phase| {
        LineState::Channel(ChannelState {
            channel: fd(22),
            phase,
            draining: true,
        })
    };
    let group = |key, kind| GroupState {
        key,
        text: "127.0.0.1:80".to_owned(),
        name: "tcp".to_owned(),
        kind,
        lock: Some(LockState {
            path: Bytes::from("/run/lock"),
            file: fd(30),
        }),
    };
    State {
        version: "1.2.3".to_owned(),
        pid: 4710,
        descriptors: descriptors.collect(),
        arguments: vec![Bytes(b"supervisor".to_vec()), Bytes(vec![0xff, b'x'])],
        own_path: Bytes::from("/usr/bin/supervisor"),
        inherited: vec![InheritedState {
            name: "web".to_owned(),
            socket: fd(3),
        }],
        core: core().state(),
        accepted: GenerationId(1),
        generations: vec![GenerationState {
            id: GenerationId(1),
            file: Some("workers = 3\n".to_owned()),
            cpus: 4,
            protocol: 1,
            program: ProgramState {
                descriptor: fd(9),
                path: Bytes::from("/bin/app"),
                script: true,
            },
            opened: 3,
            backlog: 4096,
            sockets: vec![EntryState {
                group: 0,
                sockets: 8,
                label: None,
            }],
            admin: Vec::new(),
            agent: Vec::new(),
            access: None,
            directory: None,
            interpreters: Vec::new(),
            command: Vec::new(),
            paths: Vec::new(),
        }],
        groups: vec![
            group(
                KeyState::Tcp("0.0.0.0:0".to_owned()),
                KindState::ReuseportGroup(ReuseportGroupState {
                    address: "[::1]:80".to_owned(),
                    sockets: vec![fd(40), fd(41)],
                    indices: vec![Some(0), None],
                    steering: Some(fd(44)),
                    steering_index: Some(1),
                    count: 2,
                    backlog: 128,
                    adopted: true,
                    steered: vec![0],
                    scattered: false,
                }),
            ),
            group(
                KeyState::Unix(Bytes::from("/run/a.sock")),
                KindState::File(FileState {
                    path: Bytes::from("/run/a.sock"),
                    mode: Some(0o660),
                    owner: None,
                    group: Some(33),
                    device: 5,
                    inode: 6,
                    socket: fd(42),
                }),
            ),
            group(KeyState::Fd(3), KindState::Inherited(fd(43))),
        ],
        workers: vec![
            hand(
                1,
                channel(PhaseState::Silent),
                Some((Time::from_millis(5), AlarmState::CountsAsReady)),
            ),
            hand(
                2,
                channel(PhaseState::Greeted),
                Some((Time::from_millis(6), AlarmState::Mute)),
            ),
            hand(3, channel(PhaseState::Ready), None),
            hand(
                4,
                LineState::Notices(NoticesState {
                    stop: 15,
                    ready: true,
                    greeted: true,
                    fed: Some(Time::from_millis(9)),
                }),
                None,
            ),
            hand(5, LineState::Closed, None),
        ],
        totals: vec![TotalsState {
            latency: Vec::new(),
            ..TotalsState::of(
                Slot(1),
                &Totals {
                    requests: 1 << 33,
                    connections: 12,
                    ..Totals::default()
                },
            )
        }],
        deaths: vec![DeathsState {
            cause: "exit".to_owned(),
            count: 3,
        }],
        backlog: b"torn".to_vec(),
        foreign_orphans: true,
        notify: NotifyState {
            socket: fd(10),
            address: Bytes::from("@x"),
            file: Some(Bytes::from("/run/n")),
            spare: None,
        },
        control: Some(ControlState {
            listener: fd(11),
            path: Bytes::from("/run/c"),
            device: 5,
            inode: 7,
            last: 9,
            pause: Some(Time::from_millis(1)),
            clients: vec![ClientState {
                id: 9,
                stream: fd(12),
                input: b"{".to_vec(),
                output: b"}".to_vec(),
                deadline: None,
                answered: true,
                role: Role::Operate,
                follows: false,
            }],
            readers: None,
        }),
        waiting: vec![9],
        last_reload: Some(ReloadState {
            generation: 1,
            reason: Some("no".to_owned()),
        }),
        booted: true,
        rotation: vec![Slot(0), Slot(3)],
        stored: vec![StoredState {
            name: "prefork-key".to_owned(),
            inode: 99,
        }],
        steering_failed: false,
        on_terminal: true,
        signals: vec![1, 15],
        upgrade: UpgradeState {
            clients: vec![9],
            reload: Some(GenerationId(2)),
        },
        cgroups: Some("/sys/fs/cgroup/system.slice/web.service".into()),
        counts: CountsState {
            started: 0,
            spawned: 0,
            reloads: 0,
            failed_reloads: 0,
            events: 0,
            status_requests: 0,
        },
        hooks: HooksState {
            running: Vec::new(),
            waiting: Vec::new(),
            dropped: 0,
        },
        leaving: Vec::new(),
        terminating: Vec::new(),
        open_files: None,
        read_at_start: Vec::new(),
        #[cfg(feature = "next")]
        novelty: String::new(),
    }
}

#[cfg(not(feature = "next"))]
/// The sample with something in every field that was added since the first release, where the
/// sample has what is assumed of a version that did not write it.
fn grown() -> State {
    let mut state = sample();
    let totals = Totals {
        requests: 1 << 33,
        connections: 12,
        errors: 3,
        bytes_in: 1 << 40,
        bytes_out: 1 << 41,
        busy_us: 5_000_000,
        latency: std::array::from_fn(|bucket| bucket as u64 * 1000),
    };
    state.generations[0].access = Some(AccessState::Pipe(Fd(60)));
    state.generations[0].directory = Some(Fd(61));
    state.generations[0].interpreters = vec![InterpreterState {
        program: ProgramState {
            descriptor: Fd(62),
            path: Bytes::from("/bin/sh"),
            script: false,
        },
        argument: Some(Bytes::from("-e")),
    }];
    state.generations[0].paths = vec![PathState {
        path: Bytes::from("/srv/current"),
        descriptor: Fd(63),
    }];
    state.generations[0].command = vec![Bytes::from("/bin/app"), Bytes::from("--flag")];
    state.totals = vec![TotalsState::of(Slot(1), &totals)];
    state.generations[0].admin = vec![EntryState {
        group: 1,
        sockets: 1,
        label: None,
    }];
    state.generations[0].agent = vec![EntryState {
        group: 0,
        sockets: 1,
        label: None,
    }];
    if let Some(rows) = &mut state.workers[2].row {
        *rows = RowState {
            size: 256,
            rows: 16,
            ..*rows
        };
    }
    state.generations[0].admin[0].label = Some("web".to_owned());
    state.workers[2].reported_requests = Some(7);
    state.read_at_start = vec![("name".to_owned(), "\"shop\"".to_owned())];
    state.counts = CountsState {
        started: 1_764_000_000,
        spawned: 9,
        reloads: 2,
        failed_reloads: 1,
        events: 70,
        status_requests: 12,
    };
    let child = |pid: i32| ChildState {
        pid,
        pidfd: Fd(pid - 4000),
        exec_errors: ExecErrorsState {
            pipe: Fd(62),
            program: "/etc/hook".to_owned(),
            directory: String::new(),
        },
    };
    state.hooks = HooksState {
        running: vec![HookState {
            child: child(4711),
            kind: "died".to_owned(),
            deadline: Time::from_millis(7000),
            asked: true,
        }],
        waiting: vec![EventState {
            kind: "reloaded".to_owned(),
            json: b"{}\n".to_vec(),
        }],
        dropped: 5,
    };
    (state.leaving, state.terminating) = (vec![child(4712)], vec![child(4713)]);
    state.open_files = Some(1024);
    if let Some(control) = &mut state.control {
        control.readers = Some(4);
        control.clients[0] = ClientState {
            role: Role::Read,
            follows: true,
            ..control.clients[0].clone()
        };
    }
    state
}

#[cfg(not(feature = "next"))]
#[test]
fn golden_bytes() {
    let written = bytes(&grown()).expect("it fits");
    assert!(
        written == unhex(GROWN),
        "the state is written differently now:\n{}",
        hex(&written)
    );
}

#[test]
fn totals_come_back_as_they_were_and_those_of_fewer_buckets_too() {
    let state = parse(&unhex(GROWN)).expect("it is understood");
    let totals = state.totals[0].totals();
    assert_eq!(
        (totals.errors, totals.busy_us, totals.latency[14]),
        (3, 5_000_000, 14_000)
    );
    let mut older = state.totals[0].clone();
    older.latency.truncate(2);
    assert_eq!(older.totals().latency[..3], [0, 1000, 0]);
    let first = parse(&unhex(GOLDEN)).expect("it is understood").totals[0].totals();
    assert_eq!(
        (
            first.requests,
            first.bytes_in,
            first.latency.iter().sum::<u64>()
        ),
        (1 << 33, 0, 0)
    );
}

#[test]
fn the_first_release_can_be_read() {
    let state = parse(&unhex(GOLDEN)).expect("it is understood");
    let core = Core::resume(state.core.clone()).expect("it is a core");
    // It did not know which workers had stopped accepting.
    let expected = format!("{:?}", self::core());
    let expected = expected.replace("stopped_accepting: true", "stopped_accepting: false");
    assert_eq!(format!("{core:?}"), expected);
    assert_eq!(
        hex(&bytes(&state).expect("it fits")).len(),
        hex(&bytes(&sample()).expect("it fits")).len()
    );
}

#[test]
fn what_is_no_state_is_refused_with_the_reason() {
    let good = unhex(GOLDEN);
    for length in 0..good.len() {
        assert!(parse(&good[..length]).is_err(), "{length} bytes");
    }
    let reason = |bytes: &[u8]| parse(bytes).expect_err("it is no state").to_string();
    assert!(reason(b"").contains("none"));
    assert!(reason(&[good.as_slice(), b"x"].concat()).contains("left over"));
    let mut other = good.clone();
    other[8] = 9;
    let reason = reason(&other);
    assert!(
        reason.contains("format 9") && reason.contains("reads 1"),
        "{reason}"
    );
}

#[test]
fn only_sealed_memory_is_believed() {
    let sealed = seal(&sample()).expect("memory");
    assert!(read(&sealed).is_ok());
    assert!(
        nix::unistd::write(&sealed, b"x").is_err() && nix::unistd::ftruncate(&sealed, 0).is_err()
    );
    let open = prefork_os::sealed_memory("test", 4096).expect("memory");
    assert!(
        read(&open)
            .expect_err("it can be written")
            .to_string()
            .contains("not sealed")
    );
}

#[test]
fn reasons_are_one_line_of_bounded_length() {
    assert_eq!(plain("a\n  b\tc\x1b[0m"), "a bc[0m");
    assert_eq!(plain(&"ä".repeat(2000)).len(), LONGEST_REASON);
}

proptest! {
    #[test]
    fn no_bytes_panic(place in 0_usize..2000, byte: u8, cut in 0_usize..2000) {
        let mut bytes = unhex(GOLDEN);
        let length = bytes.len();
        bytes[10 + place % (length - 10)] = byte;
        bytes.truncate(length - cut % 3);
        if let Ok(state) = parse(&bytes) {
            let _ = Core::resume(state.core);
        }
    }
}
