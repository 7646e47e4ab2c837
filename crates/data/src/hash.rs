//! SHA-256 in the two forms this crate needs: a name for content and a number to split by.

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first eight bytes of the SHA-256 of `bytes`: uniform, and the same on every machine and in
/// every version, which the standard library's hasher does not promise.
pub fn uniform(bytes: &[u8]) -> u64 {
    let digest = sha256(bytes);
    u64::from_le_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}
