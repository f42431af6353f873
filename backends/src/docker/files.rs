//! The archive that goes into `/configs` between create and start (spec: lifecycle §2.7).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tar::{Builder, EntryType, Header};

use crate::{BackendError, ConfigFile};

/// Every file's time: a run of the same input makes the same archive. Not 0, since zip refuses what is older than 1980.
const MODIFIED_AT: u64 = 1_577_836_800;

/// The tar of a workspace's files: parent directories 0755 once each, then files with their own modes, all of root's
/// (the image's entrypoint hands them over to its user). Of two files with one path the later wins.
///
/// # Errors
/// [`BackendError::Unusable`] for a path that is not a plain relative one.
pub fn files_archive(files: &[ConfigFile]) -> Result<Bytes, BackendError> {
    let mut wanted = BTreeMap::new();
    let mut directories = BTreeSet::new();
    for file in files {
        check_path(&file.path)?;
        let parents = file
            .path
            .match_indices('/')
            .map(|(end, _)| &file.path[..end]);
        directories.extend(parents);
        wanted.insert(file.path.as_str(), file);
    }
    if let Some(both) = wanted.keys().find(|path| directories.contains(*path)) {
        return Err(unusable(both));
    }
    let mut tar = Archive::new();
    for directory in directories {
        tar.directory(directory, 0o755)?;
    }
    for (path, file) in wanted {
        tar.file(path, file.mode & 0o7777, &file.bytes)?;
    }
    tar.finish()
}

/// A tar in memory, with owners and times of ours.
pub(super) struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn directory(&mut self, path: &str, mode: u32) -> Result<(), BackendError> {
        self.directory_of(0, path, mode)
    }

    pub(super) fn directory_of(
        &mut self,
        owner: u64,
        path: &str,
        mode: u32,
    ) -> Result<(), BackendError> {
        let mut header = header(EntryType::Directory, owner, mode, 0);
        self.0
            .append_data(&mut header, format!("{path}/"), &[][..])
            .map_err(|_| unusable(path))
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let mut header = header(EntryType::Regular, 0, mode, bytes.len() as u64);
        self.0
            .append_data(&mut header, path, bytes)
            .map_err(|_| unusable(path))
    }

    pub(super) fn finish(self) -> Result<Bytes, BackendError> {
        let written = self.0.into_inner();
        written
            .map(Bytes::from)
            .map_err(|error| BackendError::Unusable(format!("no archive of its files: {error}")))
    }
}

fn header(kind: EntryType, owner: u64, mode: u32, size_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(MODIFIED_AT);
    header.set_size(size_bytes);
    header
}

fn check_path(path: &str) -> Result<(), BackendError> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.contains('\0') || !path.split('/').all(plain) {
        return Err(unusable(path));
    }
    Ok(())
}

fn unusable(path: &str) -> BackendError {
    BackendError::Unusable(format!(
        "`{}` is no path for a file below /configs",
        path.escape_default()
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn file(path: &str, mode: u32, text: &str) -> ConfigFile {
        ConfigFile {
            path: path.into(),
            mode,
            bytes: text.into(),
        }
    }

    fn listing(files: &[ConfigFile]) -> Vec<String> {
        let bytes = files_archive(files).unwrap();
        tar::Archive::new(&bytes[..])
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                let path = entry.path().unwrap().display().to_string();
                let header = entry.header();
                let (mode, uid) = (header.mode().unwrap(), header.uid().unwrap());
                format!("{path} {mode:o} {uid} {text}")
            })
            .collect()
    }

    #[test]
    fn parents_come_once_and_the_later_of_two_files_wins() {
        let long = format!("skills/{}/SKILL.md", "x".repeat(180));
        let files = [
            file("config.yaml", 0o644, "template"),
            file("skills/a/SKILL.md", 0o644, "a"),
            file(&long, 0o644, "long"),
            file(".auth_token", 0o600, "t"),
            file("config.yaml", 0o644, "generated"),
        ];
        assert_eq!(
            listing(&files),
            [
                "skills/ 755 0 ".to_owned(),
                "skills/a/ 755 0 ".to_owned(),
                format!("skills/{}/ 755 0 ", "x".repeat(180)),
                ".auth_token 600 0 t".to_owned(),
                "config.yaml 644 0 generated".to_owned(),
                "skills/a/SKILL.md 644 0 a".to_owned(),
                format!("{long} 644 0 long"),
            ]
        );
    }

    #[test]
    fn no_path_leads_out_of_the_volume() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            "a/",
            "a\0b",
        ] {
            assert!(files_archive(&[file(bad, 0o644, "")]).is_err(), "{bad:?}");
        }
        let both = [file("a", 0o644, ""), file("a/b", 0o644, "")];
        assert!(files_archive(&both).is_err());
    }
}
