//! The algorithms this crate speaks, by their registered names, and how two lists become a choice.

use std::fmt;

/// A packet cipher. All are authenticated, so no MAC is ever negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherAlgorithm {
    /// `aes128-gcm@openssh.com` (RFC 5647 with OpenSSH's negotiation).
    Aes128Gcm,
    /// `aes256-gcm@openssh.com`.
    Aes256Gcm,
    /// `chacha20-poly1305@openssh.com`.
    ChaCha20Poly1305,
}

impl CipherAlgorithm {
    /// In order of preference.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes128-gcm@openssh.com",
            Self::Aes256Gcm => "aes256-gcm@openssh.com",
            Self::ChaCha20Poly1305 => "chacha20-poly1305@openssh.com",
        }
    }

    pub(crate) const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm => 32,
            Self::ChaCha20Poly1305 => 64,
        }
    }
}

/// A key exchange method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KexAlgorithm {
    /// `mlkem768x25519-sha256`: post-quantum hybrid.
    MlKem768X25519Sha256,
    /// `curve25519-sha256` (RFC 8731).
    Curve25519Sha256,
    /// `curve25519-sha256@libssh.org`: the same under its older name.
    Curve25519Sha256Libssh,
}

impl KexAlgorithm {
    /// In order of preference.
    pub const ALL: [Self; 3] =
        [Self::MlKem768X25519Sha256, Self::Curve25519Sha256, Self::Curve25519Sha256Libssh];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MlKem768X25519Sha256 => "mlkem768x25519-sha256",
            Self::Curve25519Sha256 => "curve25519-sha256",
            Self::Curve25519Sha256Libssh => "curve25519-sha256@libssh.org",
        }
    }
}

/// How a signature is made: the name inside a signature blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// `ssh-ed25519`.
    Ed25519,
    /// `ecdsa-sha2-nistp256`.
    EcdsaP256,
    /// `ecdsa-sha2-nistp384`.
    EcdsaP384,
    /// `rsa-sha2-256`.
    RsaSha256,
    /// `rsa-sha2-512`.
    RsaSha512,
    /// `sk-ssh-ed25519@openssh.com`.
    SkEd25519,
    /// `sk-ecdsa-sha2-nistp256@openssh.com`.
    SkEcdsaP256,
}

impl SignatureAlgorithm {
    /// Everything that is verified, in order of preference. SHA-1 is not in it.
    pub const ALL: [Self; 7] = [
        Self::Ed25519,
        Self::SkEd25519,
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::SkEcdsaP256,
        Self::RsaSha512,
        Self::RsaSha256,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256",
            Self::EcdsaP384 => "ecdsa-sha2-nistp384",
            Self::RsaSha256 => "rsa-sha2-256",
            Self::RsaSha512 => "rsa-sha2-512",
            Self::SkEd25519 => "sk-ssh-ed25519@openssh.com",
            Self::SkEcdsaP256 => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    /// The name when the key comes inside a certificate.
    pub const fn certificate_name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519-cert-v01@openssh.com",
            Self::EcdsaP256 => "ecdsa-sha2-nistp256-cert-v01@openssh.com",
            Self::EcdsaP384 => "ecdsa-sha2-nistp384-cert-v01@openssh.com",
            Self::RsaSha256 => "rsa-sha2-256-cert-v01@openssh.com",
            Self::RsaSha512 => "rsa-sha2-512-cert-v01@openssh.com",
            Self::SkEd25519 => "sk-ssh-ed25519-cert-v01@openssh.com",
            Self::SkEcdsaP256 => "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
        }
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name().as_bytes() == name)
    }
}

/// What is presented under a public key algorithm name: a bare key or a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKeyAlgorithm {
    /// How signatures are made.
    pub signature: SignatureAlgorithm,
    /// Whether the key is wrapped in an OpenSSH certificate.
    pub is_certificate: bool,
}

impl PublicKeyAlgorithm {
    /// A bare key.
    pub const fn key(signature: SignatureAlgorithm) -> Self {
        Self { signature, is_certificate: false }
    }

    /// A certificate.
    pub const fn certificate(signature: SignatureAlgorithm) -> Self {
        Self { signature, is_certificate: true }
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        if self.is_certificate { self.signature.certificate_name() } else { self.signature.name() }
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        SignatureAlgorithm::ALL
            .into_iter()
            .flat_map(|s| [Self::key(s), Self::certificate(s)])
            .find(|a| a.name().as_bytes() == name)
    }
}

impl fmt::Display for PublicKeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Host key algorithms that a client takes, in order of preference: certificates first.
pub const HOST_KEY_ALGORITHMS: [PublicKeyAlgorithm; 8] = [
    PublicKeyAlgorithm::certificate(SignatureAlgorithm::Ed25519),
    PublicKeyAlgorithm::certificate(SignatureAlgorithm::EcdsaP256),
    PublicKeyAlgorithm::certificate(SignatureAlgorithm::RsaSha512),
    PublicKeyAlgorithm::certificate(SignatureAlgorithm::RsaSha256),
    PublicKeyAlgorithm::key(SignatureAlgorithm::Ed25519),
    PublicKeyAlgorithm::key(SignatureAlgorithm::EcdsaP256),
    PublicKeyAlgorithm::key(SignatureAlgorithm::RsaSha512),
    PublicKeyAlgorithm::key(SignatureAlgorithm::RsaSha256),
];

/// The first of the client's names that the server also has (RFC 4253 section 7.1).
pub(crate) fn choose<'a>(client: &'a [u8], server: &[u8]) -> Option<&'a [u8]> {
    names(client).find(|wanted| !wanted.is_empty() && names(server).any(|had| had == *wanted))
}

pub(crate) fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',')
}
