//! The flags and variables that name model servers and the place of snapshots, for every program that starts a router.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nearring_proto::collection::InvalidInput;

use crate::embed::{EmbedError, Embedder};
use crate::model_server::{ApiKey, ModelServerSettings};
use crate::settings::{EmbedderSettings, Settings};
use crate::snapshot::SnapshotSettings;

/// The variable with the generator's key. There is no flag: every user of a machine can read a program's flags.
pub const GENERATOR_KEY: &str = "NEARRING_GENERATOR_KEY";
/// The variable with the embedder's key.
pub const EMBEDDER_KEY: &str = "NEARRING_EMBEDDER_KEY";

/// Models beside those that ship: servers that speak OpenAI's protocol, to write answers and to embed.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelServers {
    /// Answers are written by a model behind this URL, for example http://127.0.0.1:8000/v1; its key, if it wants one, stands
    /// in NEARRING_GENERATOR_KEY. Without it answers quote the passages.
    #[arg(long, env = "NEARRING_GENERATOR_URL", value_name = "URL", requires = "generator_model")]
    pub generator_url: Option<String>,
    /// The model that writes answers.
    #[arg(long, env = "NEARRING_GENERATOR_MODEL", value_name = "NAME")]
    pub generator_model: Option<String>,
    /// The longest silence of the generator, in milliseconds.
    #[arg(long, env = "NEARRING_GENERATOR_TIMEOUT_MS", default_value_t = 30_000, value_name = "MS")]
    pub generator_timeout_ms: u64,
    /// Texts are embedded by a model behind this URL; its key, if it wants one, stands in NEARRING_EMBEDDER_KEY. The built-in
    /// static256 stays.
    #[arg(
        long,
        env = "NEARRING_EMBEDDER_URL",
        value_name = "URL",
        requires = "embedder_model",
        requires = "embedder_dimension"
    )]
    pub embedder_url: Option<String>,
    /// The model that embeds; collections record this name.
    #[arg(long, env = "NEARRING_EMBEDDER_MODEL", value_name = "NAME")]
    pub embedder_model: Option<String>,
    /// Components of that model's vectors.
    #[arg(long, env = "NEARRING_EMBEDDER_DIMENSION", value_name = "N")]
    pub embedder_dimension: Option<usize>,
    /// The longest silence of the embedder, in milliseconds.
    #[arg(long, env = "NEARRING_EMBEDDER_TIMEOUT_MS", default_value_t = 30_000, value_name = "MS")]
    pub embedder_timeout_ms: u64,
    /// A directory with all-MiniLM-L6-v2 or a model like it (config.json, tokenizer.json, model.safetensors), which embeds where
    /// the directory's name is named; the built-in static256 stays.
    #[cfg(feature = "minilm")]
    #[arg(long, env = "NEARRING_MINILM", value_name = "DIRECTORY")]
    pub minilm: Option<PathBuf>,
}

/// Where snapshots lie.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotPlace {
    /// Snapshots of collections are kept in this directory, which no other router uses. Without it they are off.
    #[arg(long = "snapshots", env = "NEARRING_SNAPSHOTS", value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
    /// The most bytes of a snapshot that is sent by a client, or fetched to be restored.
    #[arg(
        long = "snapshot-upload-bytes",
        env = "NEARRING_SNAPSHOT_UPLOAD_BYTES",
        default_value_t = SnapshotSettings::UPLOAD_BYTES_MAX,
        value_name = "BYTES"
    )]
    pub upload_bytes: u64,
}

impl SnapshotPlace {
    /// Writes what was given into the settings; without a directory `otherwise` is taken.
    pub fn apply(&self, settings: &mut Settings, otherwise: Option<PathBuf>) {
        let directory = self.directory.clone().filter(|directory| !directory.as_os_str().is_empty());
        settings.snapshots = directory
            .or(otherwise)
            .map(|directory| SnapshotSettings { directory, upload_bytes_max: self.upload_bytes });
    }
}

impl ModelServers {
    /// Writes what was given into the settings; `variable` reads the environment, where the keys are.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the flag.
    pub fn apply(
        &self,
        settings: &mut Settings,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), InvalidInput> {
        let key = |name| variable(name).as_deref().and_then(ApiKey::new);
        let server = |url: &String, model: &Option<String>, timeout_ms, key| ModelServerSettings {
            key,
            idle: Duration::from_millis(timeout_ms),
            ..ModelServerSettings::new(url, model.clone().unwrap_or_default())
        };
        let flag = |part: &str, error: InvalidInput| {
            InvalidInput::new(
                format!("--{part}-{}", if error.field == "idle" { "timeout-ms" } else { &error.field }),
                error.reason,
            )
        };
        if let Some(url) = &self.generator_url {
            let server = server(url, &self.generator_model, self.generator_timeout_ms, key(GENERATOR_KEY));
            server.check().map_err(|error| flag("generator", error))?;
            settings.generator = Some(server);
        }
        if let Some(url) = &self.embedder_url {
            let server = server(url, &self.embedder_model, self.embedder_timeout_ms, key(EMBEDDER_KEY));
            server.check().map_err(|error| flag("embedder", error))?;
            let dimension = self.embedder_dimension.unwrap_or_default();
            settings.embedder = Some(EmbedderSettings { server, dimension });
        }
        Ok(())
    }

    /// The embedders that are computed here, beside the built-in one.
    ///
    /// # Errors
    /// [`EmbedError`] naming the file that cannot be read.
    pub fn local(&self) -> Result<Vec<Arc<dyn Embedder>>, EmbedError> {
        #[cfg(feature = "minilm")]
        if let Some(folder) = &self.minilm {
            return Ok(vec![Arc::new(crate::embed::MiniLm::load(folder)?)]);
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        models: ModelServers,
    }

    fn settings(flags: &[&str]) -> Result<Settings, String> {
        let program = Program::try_parse_from([&["router"], flags].concat()).map_err(|error| error.to_string())?;
        let mut settings = Settings::new(vec!["10.0.0.1:7000".into()]);
        let variable = |name: &str| Some(format!(" key of {name}\n"));
        program.models.apply(&mut settings, variable).map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[test]
    fn servers_are_read_with_their_keys_and_what_is_missing_is_named() {
        assert_eq!(settings(&[]).unwrap(), Settings::new(vec!["10.0.0.1:7000".into()]));
        let url = "http://127.0.0.1:8000/v1";
        let given =
            settings(&["--generator-url", url, "--generator-model", "m", "--generator-timeout-ms", "50"]).unwrap();
        let server = given.generator.unwrap();
        assert_eq!(
            (server.idle, server.key),
            (Duration::from_millis(50), ApiKey::new("key of NEARRING_GENERATOR_KEY"))
        );
        let flags = ["--embedder-url", url, "--embedder-model", "e", "--embedder-dimension", "384"];
        assert_eq!(settings(&flags).unwrap().embedder.unwrap().dimension, 384);
        assert!(settings(&flags[..4]).unwrap_err().contains("--embedder-dimension"));
        let error = settings(&["--generator-url", "localhost", "--generator-model", "m"]).unwrap_err();
        assert!(error.contains("--generator-url"), "{error}");
        let error = settings(&["--generator-url", url, "--generator-model", "m", "--generator-timeout-ms", "0"]);
        assert!(error.unwrap_err().contains("--generator-timeout-ms"));
    }
}
