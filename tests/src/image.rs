//! The image of all workspaces under test: the reference agent and nothing else.
//!
//! The tag is the content's, so tests of one build share the image, and a changed agent is another one.

use bollard::Docker;
use bollard::body_full;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt as _;
use longshore_base::secret::sha256;

use crate::leftovers::one_at_a_time;
use crate::programs::agent_binary;

const REPOSITORY: &str = "longshore-test/reference-agent";

/// Imports it unless it is there; answers its name.
pub async fn ensure(docker: &Docker) -> String {
    let binary = std::fs::read(agent_binary()).unwrap();
    let tag = hex::encode(&sha256(&binary)[..6]);
    let image = format!("{REPOSITORY}:{tag}");
    if docker.inspect_image(&image).await.is_ok() {
        return image;
    }
    let _one = one_at_a_time().await;
    if docker.inspect_image(&image).await.is_ok() {
        return image;
    }
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(REPOSITORY)
        .tag(&tag)
        .changes(vec![
            "ENTRYPOINT [\"/longshore-agent\"]".to_owned(),
            "EXPOSE 8000".to_owned(),
        ])
        .build();
    let root = body_full(root_filesystem(&binary, &[]).into());
    docker
        .create_image(Some(options), Some(root), None)
        .try_collect::<Vec<_>>()
        .await
        .expect("the engine imports an image");
    image
}

/// The agent with the directories it needs, and files beside it.
pub(crate) fn root_filesystem(binary: &[u8], more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["configs/", "workspace/", "tmp/", "root/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, directory, &[][..]).unwrap();
    }
    for (path, bytes) in [("longshore-agent", binary)].iter().chain(more) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}
