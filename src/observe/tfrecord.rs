//! TFRecords, what an event file is a run of: length (u64), its masked CRC-32C, data, the data's masked CRC-32C, all
//! little-endian.

/// Bytes of a record besides its data: length, two checksums.
pub(super) const FRAME: usize = 16;

pub(super) fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum = |part: &[u8]| masked_crc32c(part).to_le_bytes();
    [&length[..], &sum(&length), data, &sum(data)].concat()
}

/// Where each whole record ends; the first damaged one ends the list.
pub(super) fn records(content: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some((length, rest)) = content[at..].split_first_chunk::<8>() {
        let Ok(size) = usize::try_from(u64::from_le_bytes(*length)) else { break };
        let Some(data) = rest.get(4..).and_then(|rest| rest.get(..size)) else { break };
        let end = at + FRAME + size;
        if content.get(at..end).is_none_or(|record| record != frame(data)) {
            break;
        }
        ends.push(end);
        at = end;
    }
    ends
}

/// The checksum of TFRecords: CRC-32C, rotated by 15 bits, plus a constant.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected. RFC 3720, appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    !data.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_rfcs_examples() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }
}
