//! The packets that are held, in the order in which they came and will go. It knows no clock.

use super::Way;
use std::collections::VecDeque;
use std::time::Instant;

/// A packet that is on its way.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) due: Instant,
    pub(super) packet: Vec<u8>,
}

/// First in, first out: since no packet overtakes another one, the first is always the next that is
/// due.
#[derive(Debug)]
pub(super) struct Queue {
    way: Way,
    chance: Chance,
    held: VecDeque<Held>,
}

impl Queue {
    pub(super) fn new(way: Way) -> Self {
        Self {
            way,
            chance: Chance(way.seed),
            held: VecDeque::new(),
        }
    }

    /// Holds a packet, or gives it back if it is lost.
    pub(super) fn push(&mut self, now: Instant, packet: Vec<u8>) -> Result<(), Vec<u8>> {
        // Drawn for each packet and whatever the settings, so that with one seed a packet's loss
        // does not depend on the jitter.
        let (loss, jitter) = (self.chance.below(1_000_000), self.chance.below(1 << 20));
        if loss < u64::from(self.way.loss_per_million) {
            return Err(packet);
        }
        let share = u32::try_from(jitter).expect("below 2^20");
        let jitter = self
            .way
            .jitter
            .mul_f64(f64::from(share) / f64::from(1 << 20));
        let due = now + self.way.delay + jitter;
        let due = self.held.back().map_or(due, |last| due.max(last.due));
        self.held.push_back(Held { due, packet });
        Ok(())
    }

    /// The next packet whose time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Held> {
        self.held.pop_front_if(|held| held.due <= now)
    }

    /// When the next packet is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.held.front().map(|held| held.due)
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}

/// Splitmix64: small, and good enough for dice.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MS: Duration = Duration::from_millis(1);

    /// What leaves the queue at each millisecond when one packet enters at each of the first 1,000.
    fn played(way: Way) -> (Vec<(u32, u16)>, u32) {
        let start = Instant::now();
        let mut queue = Queue::new(way);
        let (mut left, mut lost) = (Vec::new(), 0);
        for at in 0..2_000_u32 {
            if let Ok(number @ 0..1_000) = u16::try_from(at) {
                lost += u32::from(
                    queue
                        .push(start + at * MS, number.to_be_bytes().to_vec())
                        .is_err(),
                );
            }
            while let Some(held) = queue.pop(start + at * MS) {
                left.push((at, u16::from_be_bytes([held.packet[0], held.packet[1]])));
            }
        }
        assert_eq!((queue.len(), queue.next_due()), (0, None));
        (left, lost)
    }

    #[test]
    fn packets_leave_after_the_delay_and_never_earlier() {
        let (left, lost) = played(Way::of(50 * MS));
        assert_eq!((left.len(), lost), (1_000, 0));
        assert!(
            left.iter()
                .all(|&(at, number)| at == u32::from(number) + 50)
        );
    }

    #[test]
    fn jitter_delays_further_and_keeps_the_order() {
        let (left, _) = played(Way {
            jitter: 20 * MS,
            ..Way::of(50 * MS)
        });
        assert!(left.iter().map(|&(_, number)| number).eq(0..1_000));
        assert!(
            left.iter()
                .all(|&(at, number)| (50..=70).contains(&(at - u32::from(number))))
        );
        assert!(left.iter().any(|&(at, number)| at - u32::from(number) > 60));
    }

    #[test]
    fn losses_follow_the_seed() {
        let lossy = |seed| {
            played(Way {
                loss_per_million: 100_000,
                seed,
                ..Way::of(MS)
            })
        };
        let (left, lost) = lossy(7);
        assert!((50..150).contains(&lost), "{lost}");
        assert_eq!(left.len(), 1_000 - lost as usize);
        assert_eq!(lossy(7), (left.clone(), lost));
        assert_ne!(lossy(8).0, left);
    }
}
