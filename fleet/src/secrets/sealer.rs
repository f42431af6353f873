//! The key ring: sealing with its first key, opening with any.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use longshore_base::{Secret, WorkspaceId, random};
use sha2::Sha256;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
/// The id of the key that stands alone in `SECRETS_ENCRYPTION_KEY`.
const LONE_KEY_ID: &str = "default";

const PLAIN: i32 = 0;
const UNBOUND: i32 = 1;
pub(super) const BOUND: i32 = 2;

/// Where a sealed value belongs; part of what version 2 authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A workspace.
    Workspace(WorkspaceId),
    /// Every workspace of the installation.
    Global,
    /// The platform itself, for one purpose: what it stores sealed outside the tables of secrets.
    Platform(&'static str),
}

/// A sealed value as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The column `encrypted_value`.
    pub bytes: Vec<u8>,
    /// The column `encryption_version`.
    pub version: i32,
    /// The column `key_id`: which key of the ring sealed it.
    pub key_id: Option<String>,
}

/// A value could not be opened. Says which and why, never what.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("secret {name} (encryption version {version}) cannot be opened: {why}")]
pub struct UnsealError {
    /// The secret's name.
    pub name: String,
    /// The stored version.
    pub version: i32,
    why: &'static str,
}

/// The setting of the sealing key is no key. Never quotes it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Neither 32 bytes nor base64 of 32 bytes.
    #[error("SECRETS_ENCRYPTION_KEY must be 32 bytes, or base64 of 32 bytes")]
    NotAKey,
    /// An entry of the ring is not `id:base64 of 32 bytes`.
    #[error(
        "entry {position} of SECRETS_ENCRYPTION_KEYS must be id:key with an id of letters, digits, . _ - and a key of 32 bytes in base64"
    )]
    BadEntry {
        /// Counted from 1.
        position: usize,
    },
    /// Two entries have one id.
    #[error("SECRETS_ENCRYPTION_KEYS names the id {id} twice")]
    DuplicateId {
        /// That id.
        id: String,
    },
}

struct Key {
    id: String,
    cipher: Aes256Gcm,
    /// What keys for other purposes are derived from.
    root: Hkdf<Sha256>,
}

impl Key {
    fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_BYTES)?;
        let payload = Payload {
            msg: ciphertext,
            aad,
        };
        self.cipher.decrypt(Nonce::from_slice(nonce), payload).ok()
    }

    fn opens(&self, aad: &[u8], sealed: &[u8]) -> bool {
        self.open(aad, sealed).is_some()
    }
}

/// The keys secrets are sealed with. The first is current; the others only open.
pub struct Sealer {
    ring: Vec<Key>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.ring.iter().map(|key| &key.id))
            .finish()
    }
}

impl Sealer {
    /// Stores in plain text. For dev mode only; refusing this elsewhere is up to whoever starts the process.
    #[must_use]
    pub const fn without_key() -> Self {
        Self { ring: Vec::new() }
    }

    /// Reads the two settings: `SECRETS_ENCRYPTION_KEY` (`single`) and `SECRETS_ENCRYPTION_KEYS` (`ring`). The ring's
    /// first key is current; a single key beside a ring only opens, under the id `default`. Empty counts as unset, and
    /// neither gives [`Sealer::without_key`].
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_settings(single: Option<&str>, ring: Option<&str>) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = Vec::new();
        let mut push = |id: &str, bytes: &[u8; KEY_BYTES]| {
            if keys.iter().any(|key| key.id == id) {
                return Err(KeyError::DuplicateId { id: id.to_owned() });
            }
            keys.push(Key {
                id: id.to_owned(),
                cipher: Aes256Gcm::new(bytes.into()),
                root: Hkdf::new(None, bytes),
            });
            Ok(())
        };
        for (index, entry) in entries(ring).enumerate() {
            let bad = KeyError::BadEntry {
                position: index + 1,
            };
            let (id, text) = entry.split_once(':').ok_or_else(|| bad.clone())?;
            let bytes = decode(text).ok_or_else(|| bad.clone())?;
            if !is_id(id) {
                return Err(bad);
            }
            push(id, &bytes)?;
        }
        if let Some(text) = single.filter(|text| !text.is_empty()) {
            let bytes = decode(text)
                .or_else(|| text.as_bytes().try_into().ok())
                .ok_or(KeyError::NotAKey)?;
            push(LONE_KEY_ID, &bytes)?;
        }
        Ok(Self { ring: keys })
    }

    /// Whether values are sealed at all.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        !self.ring.is_empty()
    }

    /// The id of the key that seals; `None` without a key.
    #[must_use]
    pub fn current_id(&self) -> Option<&str> {
        self.ring.first().map(|key| key.id.as_str())
    }

    /// The same value sealed with the current key, bound to its place; `None` when it is so already.
    ///
    /// # Errors
    /// As [`Sealer::open`].
    pub fn reseal(
        &self,
        owner: Owner,
        name: &str,
        sealed: &Sealed,
    ) -> Result<Option<Sealed>, UnsealError> {
        let plain = self.open_bytes(owner, name, sealed)?;
        let by_current = |key: &Key| {
            sealed.version == BOUND
                && sealed.key_id.as_deref() == Some(key.id.as_str())
                && key.opens(&binding(owner, name), &sealed.bytes)
        };
        Ok(if self.ring.first().is_some_and(by_current) {
            None
        } else {
            Some(self.seal_bytes(owner, name, &plain))
        })
    }

    /// Seals a text with the current key, bound to its owner and name; in plain text when there is no key.
    #[must_use]
    pub fn seal(&self, owner: Owner, name: &str, plain: &str) -> Sealed {
        self.seal_bytes(owner, name, plain.as_bytes())
    }

    /// Seals bytes; see [`Sealer::seal`].
    #[must_use]
    pub fn seal_bytes(&self, owner: Owner, name: &str, plain: &[u8]) -> Sealed {
        let Some(key) = self.ring.first() else {
            return Sealed {
                bytes: plain.to_vec(),
                version: PLAIN,
                key_id: None,
            };
        };
        let nonce: [u8; NONCE_BYTES] = random::bytes();
        let payload = Payload {
            msg: plain,
            aad: &binding(owner, name),
        };
        #[expect(
            clippy::expect_used,
            reason = "AES-GCM refuses only messages of more than 64 GiB"
        )]
        let ciphertext = key
            .cipher
            .encrypt(Nonce::from_slice(&nonce), payload)
            .expect("a value in memory is under 64 GiB");
        Sealed {
            bytes: [nonce.as_slice(), &ciphertext].concat(),
            version: BOUND,
            key_id: Some(key.id.clone()),
        }
    }

    /// Opens a sealed text of any version.
    ///
    /// # Errors
    /// [`UnsealError`]: no key fits, the bytes were changed, they belong elsewhere, or are no text.
    pub fn open(
        &self,
        owner: Owner,
        name: &str,
        sealed: &Sealed,
    ) -> Result<Secret<String>, UnsealError> {
        let bytes = self.open_bytes(owner, name, sealed)?;
        String::from_utf8(bytes)
            .map(Secret::new)
            .map_err(|_| unsealable(name, sealed, "it is not UTF-8 text"))
    }

    /// Opens sealed bytes; see [`Sealer::open`].
    ///
    /// # Errors
    /// As [`Sealer::open`].
    pub fn open_bytes(
        &self,
        owner: Owner,
        name: &str,
        sealed: &Sealed,
    ) -> Result<Vec<u8>, UnsealError> {
        let fail = |why| Err(unsealable(name, sealed, why));
        let aad = match sealed.version {
            PLAIN => return Ok(sealed.bytes.clone()),
            UNBOUND => Vec::new(),
            BOUND => binding(owner, name),
            _ => return fail("this release does not know the version; upgrade"),
        };
        if self.ring.is_empty() {
            return fail("no encryption key is configured");
        }
        if sealed.bytes.len() < NONCE_BYTES {
            return fail("it is too short");
        }
        let opened = self
            .candidates(sealed.key_id.as_deref())
            .find_map(|key| key.open(&aad, &sealed.bytes));
        match opened {
            Some(plain) => Ok(plain),
            None => fail("no configured key opens it"),
        }
    }

    /// A digest of these parts that nobody without the key can make: HMAC-SHA-256 under a key derived from the current
    /// one, by HKDF, for this purpose alone. Without a key it is an ordinary digest, as values are then plain text.
    #[must_use]
    pub fn fingerprint(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let root = self.ring.first().map(|key| &key.root);
        digest(root, purpose, parts).finalize().into_bytes().into()
    }

    /// Whether a digest is that of these parts under any key, or under none. Compares in constant time.
    #[must_use]
    pub fn is_fingerprint(&self, purpose: &str, parts: &[&[u8]], stored: &[u8]) -> bool {
        let roots = self.ring.iter().map(|key| Some(&key.root)).chain([None]);
        let mut digests = roots.map(|root| digest(root, purpose, parts));
        digests.any(|digest| digest.verify_slice(stored).is_ok())
    }

    /// The named key first, then the others: an operator may have renamed a key, and version 1 names none. Trying is
    /// safe, since a wrong key cannot pass authentication.
    fn candidates(&self, named: Option<&str>) -> impl Iterator<Item = &Key> {
        let is_named = move |key: &&Key| named == Some(key.id.as_str());
        let rest = self.ring.iter().filter(move |key| !is_named(key));
        self.ring.iter().filter(is_named).chain(rest)
    }
}

fn digest(root: Option<&Hkdf<Sha256>>, purpose: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut key = [0; KEY_BYTES];
    #[expect(
        clippy::expect_used,
        reason = "HKDF refuses only keys of more than 255 digests, HMAC none"
    )]
    let mut mac = {
        root.unwrap_or(&Hkdf::new(None, &[]))
            .expand(purpose.as_bytes(), &mut key)
            .expect("a key of one digest");
        Hmac::<Sha256>::new_from_slice(&key).expect("a key of any length")
    };
    for part in parts {
        // Its length goes first, so that no two lists of parts run together to the same bytes.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn entries(ring: Option<&str>) -> impl Iterator<Item = &str> {
    ring.unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn decode(text: &str) -> Option<[u8; KEY_BYTES]> {
    STANDARD.decode(text.trim()).ok()?.try_into().ok()
}

fn binding(owner: Owner, name: &str) -> Vec<u8> {
    let owner = match owner {
        Owner::Workspace(id) => id.to_string(),
        Owner::Global => "global".to_owned(),
        Owner::Platform(purpose) => format!("platform:{purpose}"),
    };
    [owner.as_bytes(), b"\0", name.as_bytes()].concat()
}

fn unsealable(name: &str, sealed: &Sealed, why: &'static str) -> UnsealError {
    UnsealError {
        name: name.to_owned(),
        version: sealed.version,
        why,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAW: &str = "0123456789abcdef0123456789abcdef";

    fn sealer() -> Sealer {
        Sealer::from_settings(Some(RAW), None).unwrap()
    }

    fn base64_key(fill: u8) -> String {
        STANDARD.encode([fill; KEY_BYTES])
    }

    fn owner() -> Owner {
        Owner::Workspace("0b6f3c1e-4d2a-4c3b-9f00-0123456789ab".parse().unwrap())
    }

    #[test]
    fn a_key_is_base64_of_32_bytes_or_32_raw_bytes() {
        assert!(
            Sealer::from_settings(Some(&base64_key(7)), None)
                .unwrap()
                .has_key()
        );
        // Valid base64, but of 24 bytes: taken as the raw key it is.
        assert!(STANDARD.decode(RAW).is_ok());
        assert!(sealer().has_key());
        for bad in ["short", "0123456789abcdef0123456789abcdef0", "AAAA"] {
            assert_eq!(
                Sealer::from_settings(Some(bad), None).unwrap_err(),
                KeyError::NotAKey,
                "{bad}"
            );
        }
        assert!(!Sealer::from_settings(None, Some("")).unwrap().has_key());
    }

    #[test]
    fn a_ring_entry_that_is_no_key_is_named_by_its_place_only() {
        let good = base64_key(1);
        for (ring, expected) in [
            (
                format!("a:{good},b:nonsense"),
                KeyError::BadEntry { position: 2 },
            ),
            (good.clone(), KeyError::BadEntry { position: 1 }),
            (format!("a b:{good}"), KeyError::BadEntry { position: 1 }),
            (
                format!("a:{good},a:{good}"),
                KeyError::DuplicateId { id: "a".into() },
            ),
        ] {
            let error = Sealer::from_settings(None, Some(&ring)).unwrap_err();
            assert_eq!(error, expected);
            assert!(!error.to_string().contains(&good));
        }
    }

    #[test]
    fn the_first_key_of_the_ring_seals_and_every_key_opens() {
        let (old, new) = (base64_key(1), base64_key(2));
        let before = Sealer::from_settings(None, Some(&format!("old:{old}"))).unwrap();
        let sealed = before.seal(Owner::Global, "K", "value");
        assert_eq!(sealed.key_id.as_deref(), Some("old"));
        let after = Sealer::from_settings(None, Some(&format!("new:{new}, old:{old}"))).unwrap();
        assert_eq!(
            after
                .open(Owner::Global, "K", &sealed)
                .unwrap()
                .expose()
                .as_str(),
            "value"
        );
        assert_eq!(
            after.seal(Owner::Global, "K", "value").key_id.as_deref(),
            Some("new")
        );
        let single = Sealer::from_settings(Some(&old), Some(&format!("new:{new}"))).unwrap();
        assert!(single.open(Owner::Global, "K", &sealed).is_ok());
    }

    #[test]
    fn what_the_current_key_has_not_sealed_is_sealed_anew() {
        let (old, new) = (base64_key(1), base64_key(2));
        let ring = |text: String| Sealer::from_settings(None, Some(&text)).unwrap();
        let before = ring(format!("old:{old}"));
        let after = ring(format!("new:{new},old:{old}"));
        let plain = Sealer::without_key().seal(owner(), "K", "v");
        for sealed in [before.seal(owner(), "K", "v"), plain] {
            let anew = after.reseal(owner(), "K", &sealed).unwrap().unwrap();
            assert_eq!(anew.key_id.as_deref(), Some("new"));
            assert_eq!(after.reseal(owner(), "K", &anew).unwrap(), None);
            let alone = ring(format!("new:{new}"));
            assert_eq!(alone.open(owner(), "K", &anew).unwrap().expose(), "v");
        }
        // Another key had this id.
        let renamed = ring(format!("key:{new},was:{old}"));
        let sealed = ring(format!("key:{old}")).seal(owner(), "K", "v");
        let anew = renamed.reseal(owner(), "K", &sealed).unwrap().unwrap();
        assert_ne!(anew.bytes, sealed.bytes);
        assert!(ring(format!("key:{new}")).open(owner(), "K", &anew).is_ok());
        assert!(
            ring(format!("key:{new}"))
                .reseal(owner(), "K", &sealed)
                .is_err()
        );
    }

    #[test]
    fn version_1_of_other_installations_opens() {
        let cipher = Aes256Gcm::new(RAW.as_bytes().into());
        let nonce = [9; NONCE_BYTES];
        let ciphertext = cipher
            .encrypt(Nonce::from_slice(&nonce), b"sk-old".as_slice())
            .unwrap();
        let sealed = Sealed {
            bytes: [nonce.as_slice(), &ciphertext].concat(),
            version: 1,
            key_id: None,
        };
        assert_eq!(
            sealer()
                .open(owner(), "K", &sealed)
                .unwrap()
                .expose()
                .as_str(),
            "sk-old"
        );
    }

    #[test]
    fn plain_text_is_written_only_without_a_key_and_always_read() {
        let sealed = Sealer::without_key().seal(owner(), "K", "v");
        assert_eq!(
            (sealed.version, sealed.bytes.as_slice()),
            (0, b"v".as_slice())
        );
        assert!(sealer().open(owner(), "K", &sealed).is_ok());
        assert_eq!(sealer().seal(owner(), "K", "v").version, 2);
    }

    #[test]
    fn a_value_opens_only_where_it_belongs_and_with_its_key() {
        let sealed = sealer().seal(owner(), "API_KEY", "hunter2-hunter2");
        let other = Sealer::from_settings(Some(&base64_key(3)), None).unwrap();
        let errors = [
            other.open(owner(), "API_KEY", &sealed),
            Sealer::without_key().open(owner(), "API_KEY", &sealed),
            sealer().open(Owner::Global, "API_KEY", &sealed),
            sealer().open(Owner::Workspace(WorkspaceId::random()), "API_KEY", &sealed),
            sealer().open(owner(), "OTHER", &sealed),
            sealer().open(
                owner(),
                "API_KEY",
                &Sealed {
                    version: 3,
                    ..sealed.clone()
                },
            ),
            sealer().open(
                owner(),
                "API_KEY",
                &Sealed {
                    bytes: vec![1; 5],
                    ..sealed.clone()
                },
            ),
        ];
        for error in errors {
            let text = error.unwrap_err().to_string();
            assert!(
                text.starts_with("secret ") && text.contains("(encryption version "),
                "{text}"
            );
            assert!(!text.contains("hunter2") && !text.contains(RAW), "{text}");
        }
    }

    #[test]
    fn a_fingerprint_tells_its_purpose_parts_and_key_and_outlives_a_rotation() {
        let (old, new) = (base64_key(1), base64_key(2));
        let before = Sealer::from_settings(None, Some(&format!("old:{old}"))).unwrap();
        let after = Sealer::from_settings(None, Some(&format!("new:{new},old:{old}"))).unwrap();
        let parts: &[&[u8]] = &[b"POST", b"/x", b"{}"];
        let made = before.fingerprint("one", parts);
        assert!(before.is_fingerprint("one", parts, &made));
        assert!(after.is_fingerprint("one", parts, &made));
        assert_ne!(after.fingerprint("one", parts), made);
        assert!(!before.is_fingerprint("two", parts, &made));
        assert!(!before.is_fingerprint("one", &[b"POST", b"/", b"x{}"], &made));
        assert!(!before.is_fingerprint("one", parts, &made[..31]));
        assert!(!sealer().is_fingerprint("one", parts, &made));
        let open = Sealer::without_key().fingerprint("one", parts);
        assert!(after.is_fingerprint("one", parts, &open));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_to_the_same(name in "[A-Z_]{1,20}", plain in ".*") {
            let sealed = sealer().seal(owner(), &name, &plain);
            let opened = sealer().open(owner(), &name, &sealed).unwrap();
            prop_assert_eq!(opened.expose(), &plain);
        }

        #[test]
        fn a_changed_byte_anywhere_is_noticed(plain in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut sealed = sealer().seal(owner(), "K", &plain);
            let at = at.index(sealed.bytes.len());
            sealed.bytes[at] ^= 1 << bit;
            prop_assert!(sealer().open(owner(), "K", &sealed).is_err());
        }
    }
}
