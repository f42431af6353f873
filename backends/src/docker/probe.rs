//! Reading a workspace's `config.yaml`, and its other files, without running anything (spec: lifecycle §2.7, §4.5).

use std::io::Read as _;

use bollard::errors::Error as ClientError;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use futures_util::TryStreamExt as _;
use longshore_base::WorkspaceId;

use super::engine::{Docker, Engine, LOOK_LIMIT, call, call_within};
use super::names::{CONFIGS, config_volume};
use crate::{BackendError, CallError, CallFailure, ConfigFile, KeptConfig};

/// A configuration is a page. Larger is a mistake, and must not fill our memory.
const LONGEST_BYTES: u64 = 1 << 20;
/// Of all files together, as of a template's.
const LARGEST_TREE_BYTES: u64 = 64 << 20;
/// What the archive adds to the file.
const ARCHIVE_BYTES: u64 = 16 << 10;
const CALL: &str = "container_download";

impl Docker {
    pub(super) async fn kept_config(
        &self,
        id: WorkspaceId,
        image: &str,
    ) -> Result<KeptConfig, BackendError> {
        let engine = self.engine().await?;
        // Of a container, running or not, the archive endpoint shows its volumes.
        if let Some(container) = self.find_ours(engine, id).await? {
            return self.config_in(engine, id, &container.id).await;
        }
        let volume = config_volume(id);
        match call("volume_inspect", engine.client.inspect_volume(&volume)).await {
            Ok(_) => {}
            Err(error) if error.failure() == CallFailure::NotFound => {
                return Ok(KeptConfig::Missing);
            }
            Err(error) => return Err(error.into()),
        }
        // One that is created but never started is enough.
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec!["/never-started".to_owned()]),
            labels: Some(self.mark(engine).of_workspace(id)),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{volume}:{CONFIGS}:ro")]),
                network_mode: Some("none".to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let created = call(
            "container_create",
            engine.client.create_container(None, body),
        )
        .await?;
        let answer = self.config_in(engine, id, &created.id).await;
        if let Err(error) = self.remove_container(engine, &created.id).await {
            let error = error.chain();
            tracing::warn!(workspace.id = %id, container.id = created.id, error, "a probe container was left behind");
        }
        answer
    }

    pub(super) async fn kept_files(
        &self,
        id: WorkspaceId,
    ) -> Result<Option<Vec<ConfigFile>>, BackendError> {
        let engine = self.engine().await?;
        let Some(container) = self.find_ours(engine, id).await? else {
            return Ok(None);
        };
        let found = download(engine, &container.id, CONFIGS, LARGEST_TREE_BYTES).await?;
        let Some(archive) = found else {
            return Ok(None);
        };
        if archive.len() as u64 > LARGEST_TREE_BYTES {
            let text = "its files are more than 64 MiB together".to_owned();
            return Err(BackendError::Unusable(text));
        }
        let files = files_in(&archive);
        Ok(Some(files.map_err(|error| {
            CallError::new(CALL, CallFailure::Failed, error)
        })?))
    }

    async fn config_in(
        &self,
        engine: &Engine,
        id: WorkspaceId,
        container_id: &str,
    ) -> Result<KeptConfig, BackendError> {
        let path = format!("{CONFIGS}/config.yaml");
        let most = LONGEST_BYTES + ARCHIVE_BYTES;
        let Some(archive) = download(engine, container_id, &path, most).await? else {
            return Ok(KeptConfig::Missing);
        };
        let text =
            file_in(&archive).map_err(|error| CallError::new(CALL, CallFailure::Failed, error))?;
        Ok(match text {
            Some(text) if !text.trim().is_empty() => KeptConfig::Found(text),
            Some(_) => KeptConfig::Missing,
            None => {
                tracing::warn!(workspace.id = %id, "the kept config.yaml is no regular file of at most 1 MiB; it is not read");
                KeptConfig::Missing
            }
        })
    }
}

/// The archive of what is at a path in a container, of which nothing is read past `most` bytes; `None` when nothing is there.
async fn download(
    engine: &Engine,
    container_id: &str,
    path: &str,
    most: u64,
) -> Result<Option<Vec<u8>>, BackendError> {
    let options = DownloadFromContainerOptionsBuilder::default()
        .path(path)
        .build();
    let download = engine
        .client
        .download_from_container(container_id, Some(options));
    let mut archive = Vec::new();
    let read = async {
        let mut chunks = std::pin::pin!(download);
        while let Some(chunk) = chunks.try_next().await? {
            archive.extend_from_slice(&chunk);
            if archive.len() as u64 > most {
                break;
            }
        }
        Ok::<_, ClientError>(())
    };
    match call_within(LOOK_LIMIT, CALL, read).await {
        Ok(()) => Ok(Some(archive)),
        Err(error) if error.failure() == CallFailure::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The regular files of an archive of a directory, by their paths below it. Links and the like are left out, and so are
/// names that are not UTF-8.
fn files_in(archive: &[u8]) -> std::io::Result<Vec<ConfigFile>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.into_owned();
        let Some((_, path)) = path.to_str().and_then(|path| path.split_once('/')) else {
            continue;
        };
        let path = path.to_owned();
        let mode = entry.header().mode()? & 0o777;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push(ConfigFile { path, mode, bytes });
    }
    Ok(files)
}

/// The text of the one regular file of an archive. `None` for anything else: an agent may have put a link there.
fn file_in(archive: &[u8]) -> std::io::Result<Option<String>> {
    let mut archive = tar::Archive::new(archive);
    let Some(entry) = archive.entries()?.next() else {
        return Ok(None);
    };
    let entry = entry?;
    if !entry.header().entry_type().is_file() || entry.size() > LONGEST_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    entry.take(LONGEST_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive_of(kind: tar::EntryType, bytes: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header, "config.yaml", bytes).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn of_a_directory_the_regular_files_are_read_by_their_paths_below_it() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |kind, path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes).unwrap();
        };
        add(tar::EntryType::Directory, "configs/", b"");
        add(tar::EntryType::Regular, "configs/config.yaml", b"name: a");
        add(tar::EntryType::Symlink, "configs/link", b"");
        add(tar::EntryType::Regular, "configs/skills/a/SKILL.md", b"s");
        let archive = tar.into_inner().unwrap();
        let files = files_in(&archive).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["config.yaml", "skills/a/SKILL.md"]);
        assert_eq!(files[0].bytes, b"name: a");
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let text = file_in(&archive_of(tar::EntryType::Regular, b"runtime: hermes\n")).unwrap();
        assert_eq!(text.as_deref(), Some("runtime: hermes\n"));
        assert_eq!(
            file_in(&archive_of(tar::EntryType::Symlink, b"")).unwrap(),
            None
        );
        assert_eq!(
            file_in(&archive_of(tar::EntryType::Directory, b"")).unwrap(),
            None
        );
        let large = vec![b'x'; (LONGEST_BYTES + 1) as usize];
        assert_eq!(
            file_in(&archive_of(tar::EntryType::Regular, &large)).unwrap(),
            None
        );
        assert!(file_in(b"not an archive at all").is_err() || file_in(b"").unwrap().is_none());
    }
}
