//! Signatures of frames and notifications: keyed BLAKE3, with keys derived from the secrets of users.
//!
//! A signed frame is the native frame with one more entry, the last of its map: key 12, bin of 20 bytes:
//! four that name the key, and the first 16 of the MAC over the topic (with its length) that the frame
//! is published on and every byte before them. Readers without a key skip the entry.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use constant_time_eq::constant_time_eq_16;
use serde::Deserialize;

/// Fewest bytes of a secret.
pub const LEAST_BYTES: usize = 16;
/// How much longer a signed frame is.
pub const FRAME_BYTES: usize = MARK.len() + ID + MAC;

/// The key of the entry, and the header of its value: bin of 20 bytes.
const MARK: [u8; 3] = [12, 0xc4, 20];
/// Bytes that name a key.
const ID: usize = 4;
/// Bytes of a MAC.
const MAC: usize = 16;
/// A map of fewer entries than this says so in its first byte.
const MOST_ENTRIES: u8 = 0x8f;

/// One key, as derived from one secret.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    id: [u8; ID],
    frames: [u8; 32],
    notices: [u8; 32],
}

impl Key {
    fn of(secret: &[u8]) -> Self {
        let mut id = [0; ID];
        let named = blake3::derive_key("eventbus 2026-11-28 name of a signing key", secret);
        id.copy_from_slice(&named[..ID]);
        Self {
            id,
            frames: blake3::derive_key("eventbus 2026-11-28 signature of a frame", secret),
            notices: blake3::derive_key("eventbus 2026-11-28 signature of a notification", secret),
        }
    }

    fn frame(&self, topic: &str, signed: &[u8]) -> [u8; MAC] {
        let mut hasher = blake3::Hasher::new_keyed(&self.frames);
        // Fixed in length, so that no topic and frame run into each other.
        hasher.update(&(topic.len() as u64).to_be_bytes());
        hasher.update(topic.as_bytes());
        hasher.update(signed);
        mac(&hasher)
    }

    fn notice(&self, head: &str, packed: &[u8]) -> [u8; MAC] {
        let mut hasher = blake3::Hasher::new_keyed(&self.notices);
        hasher.update(&self.id);
        hasher.update(&(head.len() as u64).to_be_bytes());
        hasher.update(head.as_bytes());
        hasher.update(packed);
        mac(&hasher)
    }
}

fn mac(hasher: &blake3::Hasher) -> [u8; MAC] {
    let mut short = [0; MAC];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..MAC]);
    short
}

/// The keys of a bus: the first signs, each verifies. No `Debug` shows more than their number.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Keys(Arc<[Key]>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl TryFrom<Vec<String>> for Keys {
    type Error = String;

    /// Reads secrets in base64, as a configuration holds them.
    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let decoded = texts.iter().map(|text| STANDARD.decode(text));
        let secrets: Vec<Vec<u8>> =
            decoded.collect::<Result<_, _>>().map_err(|_| "signing_keys must be base64")?;
        Self::new(&secrets)
    }
}

impl Keys {
    /// Derives keys from secrets, the one that signs first. Without any nothing is signed or verified.
    ///
    /// # Errors
    /// The rule, for a secret of less than [`LEAST_BYTES`].
    pub fn new(secrets: &[impl AsRef<[u8]>]) -> Result<Self, String> {
        if secrets.iter().any(|secret| secret.as_ref().len() < LEAST_BYTES) {
            return Err(format!("signing_key must have at least {LEAST_BYTES} bytes"));
        }
        Ok(Self(secrets.iter().map(|secret| Key::of(secret.as_ref())).collect()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Signs a native frame that is published on `topic`; without keys it stays as it is.
    pub fn sign(&self, topic: &str, frame: &mut Vec<u8>) {
        let Some(key) = self.0.first() else { return };
        let Some(header @ 0x80..MOST_ENTRIES) = frame.first_mut() else { return };
        *header += 1;
        frame.extend_from_slice(&MARK);
        frame.extend_from_slice(&key.id);
        let mac = key.frame(topic, frame);
        frame.extend_from_slice(&mac);
    }

    /// Whether a frame was signed by one of the keys for this topic. Nothing of it is decoded.
    #[must_use]
    pub fn verify(&self, topic: &str, frame: &[u8]) -> bool {
        let Some((signed, mac)) = frame.split_last_chunk::<MAC>() else { return false };
        let Some((rest, id)) = signed.split_last_chunk::<ID>() else { return false };
        rest.ends_with(&MARK)
            && self.named(id).any(|key| constant_time_eq_16(&key.frame(topic, signed), mac))
    }

    /// Returns the signature of a notification with this head and content as text, when there is a key.
    #[must_use]
    pub fn sign_notice(&self, head: &str, packed: &[u8]) -> Option<String> {
        let key = self.0.first()?;
        let mut tag = [0; ID + MAC];
        tag[..ID].copy_from_slice(&key.id);
        tag[ID..].copy_from_slice(&key.notice(head, packed));
        Some(URL_SAFE_NO_PAD.encode(tag))
    }

    /// Whether a text is the signature of a notification with this head and content.
    #[must_use]
    pub fn verify_notice(&self, text: &str, head: &str, packed: &[u8]) -> bool {
        let Ok(tag) = URL_SAFE_NO_PAD.decode(text) else { return false };
        let Some((id, mac)) = tag.split_first_chunk::<ID>() else { return false };
        let Ok(mac) = mac.try_into() else { return false };
        self.named(id).any(|key| constant_time_eq_16(&key.notice(head, packed), mac))
    }

    fn named<'a>(&'a self, id: &'a [u8; ID]) -> impl Iterator<Item = &'a Key> {
        self.0.iter().filter(move |key| key.id == *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secrets: &[&str]) -> Keys {
        Keys::new(secrets).unwrap_or_default()
    }

    const FRAME: &[u8] = &[0x84, 0, 1, 1, 6, 2, 0xa1, b't', 5, 0xc4, 1, 0xc0];

    #[test]
    fn any_changed_byte_and_any_other_topic_or_key_is_refused() {
        let one = keys(&["a secret of 16 b."]);
        let mut frame = FRAME.to_vec();
        one.sign("orders", &mut frame);
        assert_eq!(frame.len(), FRAME.len() + FRAME_BYTES);
        assert!(one.verify("orders", &frame));
        for topic in ["", "order", "orders:", "Orders"] {
            assert!(!one.verify(topic, &frame), "{topic}");
        }
        for at in 0..frame.len() {
            let mut changed = frame.clone();
            changed[at] ^= 1;
            assert!(!one.verify("orders", &changed), "byte {at}");
            assert!(!one.verify("orders", &frame[..at]), "the first {at} bytes");
        }
        assert!(!keys(&["another secret 16"]).verify("orders", &frame));
        assert!(!one.verify("orders", FRAME));
        assert!(!Keys::default().verify("orders", &frame));
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let (old, new) = ("the old secret ....", "the new secret ....");
        let mut frame = FRAME.to_vec();
        keys(&[new, old]).sign("t", &mut frame);
        assert!(keys(&[new]).verify("t", &frame));
        assert!(keys(&[old, new]).verify("t", &frame));
        assert!(!keys(&[old]).verify("t", &frame));
    }

    #[test]
    fn a_notification_is_signed_apart_from_frames() {
        let one = keys(&["a secret of 16 b."]);
        let text = one.sign_notice("b7.9.0", b"packed").unwrap_or_default();
        assert_eq!(text.len(), 27);
        assert!(one.verify_notice(&text, "b7.9.0", b"packed"));
        for (head, packed) in [("b7.9.1", "packed"), ("b7.9.0", "packe"), ("b7.9.0p", "acked")] {
            assert!(!one.verify_notice(&text, head, packed.as_bytes()), "{head} {packed}");
        }
        for bad in ["", "!", &text[1..], &text.to_ascii_uppercase()] {
            assert!(!one.verify_notice(bad, "b7.9.0", b"packed"), "{bad}");
        }
        assert_eq!(Keys::default().sign_notice("b", b""), None);
    }

    #[test]
    fn signatures_never_change() {
        // Written by one version of this program, read by another.
        let mut frame = FRAME.to_vec();
        keys(&["0123456789abcdef"]).sign("t", &mut frame);
        let hex: String = frame[FRAME.len()..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0cc414165cc1c0b067905d15f629c33d631af00cba2f2d");
    }

    #[test]
    fn a_short_secret_is_refused_and_no_secret_is_shown() {
        assert!(Keys::new(&["fifteen bytes.."]).is_err());
        let shown = format!("{:?}", keys(&["a secret of 16 b."]));
        assert_eq!(shown, "1 keys");
        assert!(Keys::try_from(vec!["%".to_owned()]).is_err());
    }
}
