//! A certificate authority for servers and clients, which writes its files into a folder.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, SanType,
};

/// The authority and its folder.
pub struct Certificates {
    folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// Creates an authority. Writes its certificate as ca.pem, and server.pem and server.key for a
    /// server on this machine.
    pub fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificates = Self { folder: folder.to_owned(), authority };
        fs::write(certificates.path("ca.pem"), certificates.authority.pem()).unwrap();
        certificates.certificate("server", &["localhost", "127.0.0.1"], |_| ());
        certificates
    }

    /// Returns the path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Issues a certificate, and writes NAME.pem and NAME.key.
    pub fn certificate(
        &self,
        name: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        self.certificate_of(&self.authority, name, names, change);
    }

    /// Issues a certificate that `issuer` signs, and writes NAME.pem and NAME.key.
    pub fn certificate_of(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        name: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let (uris, hosts): (Vec<&str>, Vec<&str>) =
            names.iter().copied().partition(|name| name.contains("://"));
        let hosts: Vec<String> = hosts.into_iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params
            .subject_alt_names
            .extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        // Like most tools, this replaces the previous file atomically.
        let write = |file: &str, text: String| {
            let new = self.path(&format!("{file}.new"));
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
            fs::rename(&new, self.path(file)).unwrap();
        };
        write(&format!("{name}.pem"), params.signed_by(&key, issuer).unwrap().pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}
