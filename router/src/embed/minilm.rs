//! all-MiniLM-L6-v2, or another BERT of the sentence-transformers, computed by candle from a directory as these publish it.
//!
//! text → WordPiece tokens → the model's last layer → mean over the tokens → unit length. Texts are computed one by one and
//! without padding, so that a text's vector does not depend on which texts came with it. Tokens beyond
//! [`MiniLm::TOKENS_MAX`] are not read: the model was trained on no longer texts.
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, DTYPE};
use futures::future::BoxFuture;
use tokenizers::{Tokenizer, TruncationParams};

use super::{EmbedError, Embedder};
use crate::compute::Compute;
use crate::failure::ModelFailure;

/// The embedder; cheap to clone.
#[derive(Clone)]
pub struct MiniLm(Arc<Parts>);

struct Parts {
    name: String,
    dimension: usize,
    tokenizer: Tokenizer,
    model: BertModel,
}

impl Parts {
    fn failed(&self, error: &dyn std::fmt::Display) -> EmbedError {
        let (embedder, reason) = (self.name.clone(), error.to_string());
        EmbedError::Failed { embedder, failure: ModelFailure::Broken, reason }
    }
}

impl MiniLm {
    /// Tokens read of a text, the two that stand at its ends included.
    pub const TOKENS_MAX: usize = 256;

    /// Reads `config.json`, `tokenizer.json` and `model.safetensors`. Collections record the directory's name: another model
    /// must have a directory of another name.
    ///
    /// # Errors
    /// [`EmbedError::Failed`] naming the file.
    pub fn load(folder: &Path) -> Result<Self, EmbedError> {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |file: &str, error: &dyn std::fmt::Display| EmbedError::Failed {
            embedder: name.clone(),
            failure: ModelFailure::Broken,
            reason: format!("{}: {error}", folder.join(file).display()),
        };
        #[allow(clippy::disallowed_methods, reason = "a model is read once, at the start, and no simulation has one")]
        let read = |file: &str| std::fs::read(folder.join(file)).map_err(|error| failed(file, &error));
        let config: Config =
            serde_json::from_slice(&read("config.json")?).map_err(|error| failed("config.json", &error))?;
        let wrong = |error: tokenizers::Error| failed("tokenizer.json", &error);
        let mut tokenizer = Tokenizer::from_bytes(read("tokenizer.json")?).map_err(wrong)?;
        tokenizer.with_padding(None);
        let max_length = Self::TOKENS_MAX.min(config.max_position_embeddings);
        tokenizer.with_truncation(Some(TruncationParams { max_length, ..Default::default() })).map_err(wrong)?;
        let weights = read("model.safetensors")?;
        let model = VarBuilder::from_buffered_safetensors(weights, DTYPE, &Device::Cpu)
            .and_then(|weights| BertModel::load(weights, &config));
        let model = model.map_err(|error| failed("model.safetensors", &error))?;
        Ok(Self(Arc::new(Parts { name, dimension: config.hidden_size, tokenizer, model })))
    }

    fn embed_all(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let embed = |(text, words): (usize, &String)| {
            let unknown = || EmbedError::NothingKnown { text, embedder: self.0.name.clone() };
            self.embed_one(words)?.ok_or_else(unknown)
        };
        texts.iter().enumerate().map(embed).collect()
    }

    /// The vector of one text; `None` where it holds no token.
    fn embed_one(&self, text: &str) -> Result<Option<Vec<f32>>, EmbedError> {
        let Parts { tokenizer, model, .. } = self.0.as_ref();
        let failed = |error: &dyn std::fmt::Display| self.0.failed(error);
        let encoding = tokenizer.encode(text, true).map_err(|error| failed(&error))?;
        // `[CLS]` and `[SEP]` stand at the ends of any text.
        if encoding.get_special_tokens_mask().iter().all(|special| *special == 1) {
            return Ok(None);
        }
        let compute = || -> candle_core::Result<Vec<f32>> {
            let tokens = Tensor::new(encoding.get_ids(), &Device::Cpu)?.unsqueeze(0)?;
            let states = model.forward(&tokens, &tokens.zeros_like()?, None)?;
            states.mean(1)?.squeeze(0)?.to_vec1()
        };
        let mut vector = compute().map_err(|error| failed(&error))?;
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if !length.is_normal() {
            return Err(failed(&"the model gives a vector without a direction"));
        }
        vector.iter_mut().for_each(|x| *x /= length);
        Ok(Some(vector))
    }
}

impl Embedder for MiniLm {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn dimension(&self) -> usize {
        self.0.dimension
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move {
            let (this, texts) = (self.clone(), texts.iter().map(|text| (*text).to_owned()).collect());
            // A text takes tens of milliseconds: answers ask from tasks that others wait behind.
            let done = Compute::Pool.run(move || async move { this.embed_all(texts) }).await;
            done.map_err(|error| self.0.failed(&error))?
        })
    }
}

impl std::fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MiniLm").field("name", &self.0.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::HashMap;

    use super::super::cosine;
    use super::*;

    /// A model of one layer with weights that follow from their place, and the tokenizer that ships.
    fn small(folder: &Path) {
        let (vocabulary, hidden, inner) = (30_522, 8, 16);
        let config = serde_json::json!({
            "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": inner, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 512,
            "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let tokenizer = include_bytes!("../../data/static256/tokenizer.json");
        std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
        let mut tensors = HashMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            let values =
                (0..shape.iter().product::<usize>()).map(|at| ((at * 7 + name.len()) % 13) as f32 / 13.0 - 0.4);
            tensors.insert(name.to_owned(), Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap());
        };
        add("embeddings.word_embeddings.weight", &[vocabulary, hidden]);
        add("embeddings.position_embeddings.weight", &[512, hidden]);
        add("embeddings.token_type_embeddings.weight", &[2, hidden]);
        let layer = "encoder.layer.0";
        let linear = [
            (format!("{layer}.attention.self.query"), hidden, hidden),
            (format!("{layer}.attention.self.key"), hidden, hidden),
            (format!("{layer}.attention.self.value"), hidden, hidden),
            (format!("{layer}.attention.output.dense"), hidden, hidden),
            (format!("{layer}.intermediate.dense"), inner, hidden),
            (format!("{layer}.output.dense"), hidden, inner),
        ];
        for (name, rows, columns) in linear {
            add(&format!("{name}.weight"), &[rows, columns]);
            add(&format!("{name}.bias"), &[rows]);
        }
        let norms = ["embeddings".to_owned(), format!("{layer}.attention.output"), format!("{layer}.output")];
        for name in norms {
            add(&format!("{name}.LayerNorm.weight"), &[hidden]);
            add(&format!("{name}.LayerNorm.bias"), &[hidden]);
        }
        candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    }

    #[tokio::test]
    async fn a_model_is_read_from_its_directory_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("small");
        std::fs::create_dir(&folder).unwrap();
        assert!(MiniLm::load(&folder).unwrap_err().to_string().contains("config.json"));
        small(&folder);
        let embedder = MiniLm::load(&folder).unwrap();
        assert_eq!((embedder.name(), embedder.dimension()), ("small", 8));
        let both = embedder.embed(&["a quiet river", "ants"]).await.unwrap();
        let alone = embedder.embed(&["a quiet river"]).await.unwrap();
        assert_eq!(both[0], alone[0], "a vector does not depend on the texts beside it");
        assert!(both.iter().all(|vector| (cosine(vector, vector) - 1.0).abs() < 1e-5));
        assert_ne!(both[0], both[1]);
        let long = "a quiet river ".repeat(400);
        assert_eq!(embedder.embed(&[&long]).await.unwrap()[0].len(), 8);
        let error = embedder.embed(&["ants", " "]).await.unwrap_err();
        assert_eq!(error, EmbedError::NothingKnown { text: 1, embedder: "small".into() });
        std::fs::write(folder.join("model.safetensors"), b"no tensors").unwrap();
        assert!(MiniLm::load(&folder).unwrap_err().to_string().contains("model.safetensors"));
    }

    /// The published model, where its directory is at hand: `NEARRING_MINILM=… cargo test … -- --ignored`.
    #[tokio::test]
    #[ignore = "needs the model's directory in NEARRING_MINILM"]
    async fn the_published_model_gives_the_published_figures() {
        let folder = std::env::var("NEARRING_MINILM").unwrap();
        let embedder = MiniLm::load(Path::new(&folder)).unwrap();
        let texts = ["A man is eating food.", "A man eats something.", "The stock market fell today."];
        let vectors = embedder.embed(&texts).await.unwrap();
        let near = cosine(&vectors[0], &vectors[1]);
        let far = cosine(&vectors[0], &vectors[2]);
        println!("{near} {far}");
        assert!(near > 0.7 && far < 0.2, "{near} {far}");
    }
}
