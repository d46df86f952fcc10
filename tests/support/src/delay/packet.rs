//! Packets as the kernel writes them: an IP header, and what it carries.

/// Swaps a packet's source and destination, so that it comes back from where it went to. Tells
/// whether it did; a packet that is not for one host, or is no packet, is left as it is.
pub(super) fn turn_back(packet: &mut [u8]) -> bool {
    let (first, width) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 && packet[16] < 224 => (12, 4),
        Some(6) if packet.len() >= 40 && packet[24] != 0xff => (8, 16),
        _ => return false,
    };
    let (source, destination) = packet[first..first + 2 * width].split_at_mut(width);
    source.swap_with_slice(destination);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum that IP, TCP and UDP use: swapping addresses must not change it.
    fn sum(bytes: &[u8]) -> u32 {
        bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum()
    }

    #[test]
    fn addresses_are_swapped_and_checksums_stay_valid() {
        for (version, first, width, length) in [(0x45, 12, 4, 60), (0x60, 8, 16, 90)] {
            let mut packet: Vec<u8> = (0..length).collect();
            packet[0] = version;
            let before = packet.clone();
            assert!(turn_back(&mut packet));
            let (second, end) = (first + width, first + 2 * width);
            assert_eq!(packet[first..second], before[second..end]);
            assert_eq!(packet[second..end], before[first..second]);
            assert_eq!(
                (&packet[..first], &packet[end..]),
                (&before[..first], &before[end..])
            );
            assert_eq!(sum(&packet), sum(&before));
        }
    }

    #[test]
    fn packets_without_a_single_destination_are_refused() {
        let mut multicast_v4 = [0; 40];
        multicast_v4[0] = 0x45;
        multicast_v4[16] = 239;
        let mut multicast_v6 = [0; 60];
        multicast_v6[0] = 0x60;
        multicast_v6[24] = 0xff;
        for packet in [
            &mut multicast_v4[..],
            &mut multicast_v6[..],
            &mut [],
            &mut [0x45; 19],
            &mut [0x60; 39],
        ] {
            let before = packet.to_vec();
            assert!(!turn_back(packet));
            assert_eq!(packet, before);
        }
    }
}
