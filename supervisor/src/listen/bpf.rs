//! The steering program: which slots' sockets of a SO_REUSEPORT group get new connections.
//!
//! Classic BPF, run by the kernel once per SYN. It draws a random number, since a hash of the
//! connection is 0 on some devices and a port modulo something is lopsided, and turns it into the
//! index of a socket in the group. [`reuseport_group`](super::reuseport_group) knows which slot's
//! socket has which index.

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::fmt;
use std::os::fd::OwnedFd;

/// Whether steering changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steered {
    /// New connections now go where they were asked to.
    Changed,
    /// Nothing has changed: there is nowhere to steer to, or nothing that can be steered.
    Unchanged,
}

/// Why an address could not be steered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SteerError {
    /// The address.
    pub address: String,
    /// The reason: a slot that is not open, or the system's.
    pub problem: SteerProblem,
}

/// Why an address could not be steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SteerProblem {
    /// This slot's socket does not listen; the kernel would fall back to all sockets.
    NotOpen(u16),
    /// The kernel refused the program.
    System(Errno),
    /// The steering socket is missing, and no other may change the program.
    NoSteeringSocket,
    /// Not all sockets of the address were stored: the indices of the others are unknown.
    Scattered,
}

impl fmt::Display for SteerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, problem } = self;
        let what: &dyn fmt::Display = match problem {
            SteerProblem::NotOpen(slot) => {
                return write!(f, "cannot steer {address} to slot {slot}: it is not open");
            }
            SteerProblem::System(errno) => &errno.desc(),
            SteerProblem::NoSteeringSocket => {
                &"its sockets are another user's, and its steering socket is gone; \
                  stop and start the server"
            }
            SteerProblem::Scattered => {
                &"not all of its sockets came back from systemd's FD store, or several were shut \
                  down in an unknown order; stop and start the server (with a higher \
                  FileDescriptorStoreMax=, if it has one)"
            }
        };
        write!(
            f,
            "cannot steer {address}: {what} \
             (connections also reach slots without a worker, and wait there)"
        )
    }
}

impl std::error::Error for SteerError {}

/// Steers the group of `member`, which must not be locked, to the sockets with these `indices`.
/// Without indices there is nothing to steer to, and nothing changes.
pub(crate) fn attach(member: &OwnedFd, indices: &[u16]) -> Result<Steered, Errno> {
    let mut indices = indices.to_vec();
    indices.sort_unstable();
    indices.dedup();
    if indices.is_empty() {
        return Ok(Steered::Unchanged);
    }
    let mut code = program(&indices);
    let length = u16::try_from(code.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog {
        len: length,
        filter: code.as_mut_ptr(),
    };
    setsockopt(member, sockopt::AttachReusePortCbpf, &program)?;
    Ok(Steered::Changed)
}

/// Makes the kernel drop every connection attempt to `socket`, even without a program.
pub(crate) fn reject_connections(socket: &OwnedFd) {
    let drop = socket2::SockFilter::new(opcode(libc::BPF_RET | libc::BPF_K), 0, 0, 0);
    // The filter drops everything, but may need CAP_NET_ADMIN. The other needs no privilege, and
    // still lets some packets of the same link through.
    let _ = socket2::SockRef::from(socket).attach_filter(&[drop]);
    let _ = prefork_os::ignore_travelled_packets(socket);
}

/// Returns a program that returns each of `indices` (ascending, not empty) equally often.
///
/// The random number modulo the count is a position in `indices`. Within a run of consecutive
/// indices, the index is the position plus a constant: so it takes three instructions per run, not
/// two per index.
fn program(indices: &[u16]) -> Vec<libc::sock_filter> {
    let count = length(indices);
    let mut code = vec![
        statement(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned(),
        ),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
    ];
    let mut position = 0;
    for run in indices.chunk_by(|one, next| one + 1 == *next) {
        let end = position + length(run);
        if end < count {
            // Not in this run: over the next two instructions.
            let jump = statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, end);
            code.push(libc::sock_filter { jt: 2, ..jump });
        }
        code.push(statement(
            libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K,
            u32::from(run[0]) - position,
        ));
        code.push(statement(libc::BPF_RET | libc::BPF_A, 0));
        position = end;
    }
    code
}

/// Returns the code of an instruction: 16 bits by definition, which libc types wider.
pub(super) fn opcode(code: u32) -> u16 {
    u16::try_from(code).expect("a code has 16 bits")
}

fn length(indices: &[u16]) -> u32 {
    u32::try_from(indices.len()).expect("an index has 16 bits")
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: opcode(code),
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions that `program` uses.
    fn run(code: &[libc::sock_filter], random: u32) -> u32 {
        let (mut a, mut next) = (0_u32, 0);
        loop {
            let instruction = &code[next];
            next += 1;
            match u32::from(instruction.code) {
                op if op == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = random,
                op if op == libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K => a %= instruction.k,
                op if op == libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K => a += instruction.k,
                op if op == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => {
                    next += usize::from(if a >= instruction.k {
                        instruction.jt
                    } else {
                        instruction.jf
                    });
                }
                op if op == libc::BPF_RET | libc::BPF_A => return a,
                op => panic!("instruction {op:#x}"),
            }
        }
    }

    #[test]
    fn every_index_comes_up_equally_often() {
        let odd: Vec<u16> = (0..1024).filter(|slot| slot % 2 == 1).collect();
        let all: Vec<u16> = (0..1024).collect();
        let rotations: [&[u16]; 7] = [
            &[0],
            &[7],
            &[0, 1, 2, 3],
            &[2, 3, 4],
            &[0, 1, 3, 4, 5, 9],
            &odd,
            &all,
        ];
        for slots in rotations {
            let code = program(slots);
            assert!(code.len() <= 4096, "the kernel's limit");
            let drawn: Vec<u32> = (0..length(slots))
                .map(|random| run(&code, random))
                .collect();
            assert!(drawn.into_iter().eq(slots.iter().copied().map(u32::from)));
            assert_eq!(run(&code, length(slots)), u32::from(slots[0]), "modulo");
        }
    }
}
