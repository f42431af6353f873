//! The reference agent's image, made from its binary without any registry.

use std::path::Path;

use bollard::body_full;
use bollard::query_parameters::CreateImageOptionsBuilder;
use bytes::Bytes;
use futures_util::TryStreamExt as _;

use super::engine::{Docker, call};
use super::files::Archive;
use crate::{BackendError, CallFailure};

/// Where the binary is in the image.
const AGENT: &str = "longshore-agent";
/// The user an agent may drop to; the ecosystem's images use the same id.
const AGENT_USER: u64 = 1000;

const PASSWD: &str = "root:x:0:0:root:/root:/longshore-agent\nagent:x:1000:1000:agent:/home/agent:/longshore-agent\n";
const GROUP: &str = "root:x:0:\nagent:x:1000:\n";

impl Docker {
    /// Imports the reference image under `tag` (`name:tag`, which the caller derives from the binary's content) unless
    /// an image of that tag is there. Answers whether it was imported.
    ///
    /// # Errors
    /// The binary cannot be read, or the engine is away or refuses.
    pub async fn ensure_reference_image(
        &self,
        tag: &str,
        agent_binary: &Path,
    ) -> Result<bool, BackendError> {
        let engine = self.engine().await?;
        match call("image_inspect", engine.client.inspect_image(tag)).await {
            Ok(_) => return Ok(false),
            Err(error) if error.failure() == CallFailure::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let binary = tokio::fs::read(agent_binary).await;
        let binary = binary.map_err(|source| BackendError::AgentBinary {
            path: agent_binary.display().to_string(),
            source,
        })?;
        let Some((repository, version)) = tag.rsplit_once(':') else {
            return Err(BackendError::Misconfigured(format!(
                "the reference image `{tag}` has no tag"
            )));
        };
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(repository)
            .tag(version)
            .changes(vec![
                format!("ENTRYPOINT [\"/{AGENT}\"]"),
                "EXPOSE 8000".to_owned(),
                "WORKDIR /workspace".to_owned(),
            ])
            .build();
        let root = body_full(root_filesystem(&binary)?);
        let import = engine.client.create_image(Some(options), Some(root), None);
        call("image_import", import.try_collect::<Vec<_>>()).await?;
        tracing::info!(image = tag, "reference image imported");
        Ok(true)
    }
}

/// One binary and the few directories the platform's mounts and the runtime's libraries expect.
fn root_filesystem(binary: &[u8]) -> Result<Bytes, BackendError> {
    let mut tar = Archive::new();
    for directory in ["configs", "workspace", "etc", "home"] {
        tar.directory(directory, 0o755)?;
    }
    tar.directory("tmp", 0o1777)?;
    tar.directory("root", 0o700)?;
    tar.directory_of(AGENT_USER, "home/agent", 0o755)?;
    tar.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    tar.file("etc/group", 0o644, GROUP.as_bytes())?;
    tar.file(AGENT, 0o755, binary)?;
    tar.finish()
}
