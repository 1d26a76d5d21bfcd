//! Packet protection: sealing and opening one binary packet in place.
//!
//! A packet is `length || padding length || payload || padding || tag` (RFC 4253 section 6). With
//! GCM the length travels in clear as associated data (RFC 5647); with ChaCha20-Poly1305 it is
//! encrypted under its own key. Until the first key exchange packets are in clear.

use crate::algorithm::CipherAlgorithm;
use aws_lc_rs::aead::chacha20_poly1305_openssh as chacha;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Bytes of the authentication tag of every cipher.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of the length field.
pub(crate) const LENGTH_BYTES: usize = 4;

/// The packet did not authenticate, or a cipher could not be made or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CipherError;

/// Key material of one direction.
pub(crate) struct DirectionKeys {
    pub(crate) cipher: CipherAlgorithm,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) iv: [u8; 12],
}

/// A GCM key with its invocation counter (RFC 5647 section 7.1).
pub(crate) struct Gcm {
    key: LessSafeKey,
    fixed: [u8; 4],
    counter: u64,
}

impl Gcm {
    fn new(keys: &DirectionKeys) -> Result<Self, CipherError> {
        let algorithm = if keys.cipher == CipherAlgorithm::Aes128Gcm { &AES_128_GCM } else { &AES_256_GCM };
        let key = UnboundKey::new(algorithm, &keys.key).map_err(|_| CipherError)?;
        let [a, b, c, d, counter @ ..] = keys.iv;
        Ok(Self { key: LessSafeKey::new(key), fixed: [a, b, c, d], counter: u64::from_be_bytes(counter) })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        let (fixed, counter) = nonce.split_at_mut(4);
        fixed.copy_from_slice(&self.fixed);
        counter.copy_from_slice(&self.counter.to_be_bytes());
        // Wraps as the RFC says; a rekey comes more than 2^30 packets earlier.
        self.counter = self.counter.wrapping_add(1);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Protects outgoing packets.
pub(crate) enum Sealer {
    Clear,
    Gcm(Box<Gcm>),
    ChaCha(Box<chacha::SealingKey>),
}

impl Sealer {
    pub(crate) fn new(keys: &DirectionKeys) -> Result<Self, CipherError> {
        match keys.cipher {
            CipherAlgorithm::Aes128Gcm | CipherAlgorithm::Aes256Gcm => {
                Ok(Self::Gcm(Box::new(Gcm::new(keys)?)))
            }
            CipherAlgorithm::ChaCha20Poly1305 => {
                let key = keys.key.as_slice().try_into().map_err(|_| CipherError)?;
                Ok(Self::ChaCha(Box::new(chacha::SealingKey::new(key))))
            }
        }
    }

    pub(crate) const fn tag_bytes(&self) -> usize {
        if matches!(self, Self::Clear) { 0 } else { TAG_BYTES }
    }

    /// Padding that brings a payload to the cipher's block, at least four bytes.
    pub(crate) const fn padding(&self, payload_bytes: usize) -> usize {
        let (block, counted) = match self {
            Self::Clear => (8, LENGTH_BYTES + 1),
            Self::Gcm(_) => (16, 1),
            Self::ChaCha(_) => (8, 1),
        };
        let pad = block - (payload_bytes + counted) % block;
        if pad < 4 { pad + block } else { pad }
    }

    /// Seals `packet` (length field included) in place and returns its tag.
    pub(crate) fn seal(
        &mut self,
        sequence: u32,
        packet: &mut [u8],
    ) -> Result<Option<[u8; TAG_BYTES]>, CipherError> {
        match self {
            Self::Clear => Ok(None),
            Self::Gcm(gcm) => {
                let nonce = gcm.nonce();
                let (length, body) = packet.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(CipherError)?;
                let tag = gcm
                    .key
                    .seal_in_place_separate_tag(nonce, Aad::from(*length), body)
                    .map_err(|_| CipherError)?;
                Ok(Some(tag.as_ref().try_into().map_err(|_| CipherError)?))
            }
            Self::ChaCha(key) => {
                let mut tag = [0; TAG_BYTES];
                key.seal_in_place(sequence, packet, &mut tag);
                Ok(Some(tag))
            }
        }
    }
}

/// Opens incoming packets.
pub(crate) enum Opener {
    Clear,
    Gcm(Box<Gcm>),
    ChaCha(Box<chacha::OpeningKey>),
}

impl Opener {
    pub(crate) fn new(keys: &DirectionKeys) -> Result<Self, CipherError> {
        match keys.cipher {
            CipherAlgorithm::Aes128Gcm | CipherAlgorithm::Aes256Gcm => {
                Ok(Self::Gcm(Box::new(Gcm::new(keys)?)))
            }
            CipherAlgorithm::ChaCha20Poly1305 => {
                let key = keys.key.as_slice().try_into().map_err(|_| CipherError)?;
                Ok(Self::ChaCha(Box::new(chacha::OpeningKey::new(key))))
            }
        }
    }

    pub(crate) const fn tag_bytes(&self) -> usize {
        if matches!(self, Self::Clear) { 0 } else { TAG_BYTES }
    }

    /// The declared packet length (not yet authenticated).
    pub(crate) fn length(&self, sequence: u32, field: [u8; LENGTH_BYTES]) -> u32 {
        match self {
            Self::Clear | Self::Gcm(_) => u32::from_be_bytes(field),
            Self::ChaCha(key) => u32::from_be_bytes(key.decrypt_packet_length(sequence, field)),
        }
    }

    /// Whether a packet of this length fills whole blocks.
    pub(crate) const fn is_aligned(&self, length: usize) -> bool {
        match self {
            Self::Clear => (length + LENGTH_BYTES).is_multiple_of(8),
            Self::Gcm(_) => length.is_multiple_of(16),
            Self::ChaCha(_) => length.is_multiple_of(8),
        }
    }

    /// Authenticates and decrypts `packet` (length field and tag included) in place.
    pub(crate) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<(), CipherError> {
        match self {
            Self::Clear => Ok(()),
            Self::Gcm(gcm) => {
                let nonce = gcm.nonce();
                let (length, body) = packet.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(CipherError)?;
                gcm.key.open_in_place(nonce, Aad::from(*length), body).map(|_| ()).map_err(|_| CipherError)
            }
            Self::ChaCha(key) => {
                let (body, tag) = packet.split_last_chunk_mut::<TAG_BYTES>().ok_or(CipherError)?;
                key.open_in_place(sequence, body, tag).map(|_| ()).map_err(|_| CipherError)
            }
        }
    }
}
