//! Drives one question to its answer, as a stream of events that a door can pass on as they come.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt};
use nearring_proto::coverage::Coverage;
use nearring_proto::hit::Hit;
use tokio::time::Instant;

use super::citations::Citations;
use super::context::{Budget, Passage, TextField, pack};
use crate::embed::{EmbedError, Embedder};
use crate::generate::{Finish, GenerateError, GenerateRequest, Generated, Generator, Sampling, Turn};
use crate::rerank::by_words;

/// What a reader of an answer sees, in this order: stages as they end, the passages once, text, the end.
#[derive(Clone, PartialEq, Debug)]
pub enum AnswerEvent {
    /// A stage ended: `embed`, `search`, `generate`.
    Stage {
        /// Its name.
        name: &'static str,
        /// How long it took.
        elapsed: Duration,
    },
    /// What the answer is written from.
    Passages {
        /// Numbered from 1.
        passages: Vec<Passage>,
        /// Which shards the search covered.
        coverage: Coverage,
    },
    /// A piece of the answer.
    Delta {
        /// Its text, citations as `[n]`.
        text: String,
        /// The passages this piece cites.
        citations: Vec<u32>,
    },
    /// The end.
    Done {
        /// Every passage cited, ascending.
        cited: Vec<u32>,
        /// Whether the passages answered the question; an answer without a citation did not.
        answered: bool,
        /// The generator's name.
        generator: String,
        /// Why the text ends.
        finish: Finish,
    },
}

/// What is asked.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Question {
    /// The question as the user wrote it.
    pub text: String,
    /// What was said before, oldest first: for the generator. The search is for the question alone.
    pub turns: Vec<Turn>,
    /// How the generator is to choose its words.
    pub sampling: Sampling,
}

impl From<&str> for Question {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }
}

/// What the caller's search is asked for.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// The question's vector, of unit length.
    pub vector: Vec<f32>,
    /// How many hits, payload included. [`Answerer::FOUND_PER_PASSAGE`] times the passages wanted.
    pub limit: usize,
}

/// What the caller's search found.
#[derive(Clone, PartialEq, Debug)]
pub struct Retrieved {
    /// Best first, payload included.
    pub hits: Vec<Hit>,
    /// Which shards were asked.
    pub coverage: Coverage,
}

/// Why an answer ends early; `E` is what the caller's search fails with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AnswerError<E> {
    /// The question is empty or too long.
    #[error("question: has {got} bytes; give 1 to {}", Answerer::QUESTION_BYTES_MAX)]
    Question {
        /// Its bytes, blanks at the ends not counted.
        got: usize,
    },
    /// The question has no vector.
    #[error("question: {0}")]
    Embed(EmbedError),
    /// The search failed.
    #[error(transparent)]
    Search(E),
    /// The generator failed.
    #[error(transparent)]
    Generate(GenerateError),
}

/// What answers the questions of one collection.
#[derive(Clone, Debug)]
pub struct Answerer {
    /// Must be the embedder that the collection records.
    pub embedder: Arc<dyn Embedder>,
    /// Writes the answers.
    pub generator: Arc<dyn Generator>,
    /// Where a chunk's text stands.
    pub text_field: TextField,
    /// How much the generator sees.
    pub budget: Budget,
}

impl Answerer {
    /// The longest question, in bytes.
    pub const QUESTION_BYTES_MAX: usize = 16 * 1024;
    /// Hits asked of the search for each passage wanted: some repeat each other, and the second look needs a choice.
    pub const FOUND_PER_PASSAGE: usize = 5;

    /// Answers a question from what `search` finds. The stream ends after `Done` or the first error; dropping it stops
    /// the work.
    pub fn answer<S, F, E>(
        &self,
        question: Question,
        search: S,
    ) -> impl Stream<Item = Result<AnswerEvent, AnswerError<E>>> + Send + use<S, F, E>
    where
        S: FnOnce(Wanted) -> F + Send + 'static,
        F: Future<Output = Result<Retrieved, E>> + Send + 'static,
        E: Send + 'static,
    {
        let mut question = question;
        question.text = question.text.trim().to_owned();
        let run = Run { answerer: self.clone(), question, began: Instant::now(), finish: Finish::default() };
        futures::stream::unfold((run, State::Embed(search)), |(mut run, state)| async move {
            let (event, next) = run.step(state).await?;
            Some((event, (run, next)))
        })
    }
}

/// Where an answer stands.
enum State<S> {
    Embed(S),
    Search(S, Vec<f32>),
    Pack(Retrieved),
    Generate(BoxStream<'static, Result<Generated, GenerateError>>, Citations),
    /// The text is complete; what is left to report.
    Complete(Citations),
    Finish(Citations),
    Ended,
}

struct Run {
    answerer: Answerer,
    question: Question,
    /// When the current stage began.
    began: Instant,
    finish: Finish,
}

impl Run {
    /// One event, and the state after it; `None` at the end.
    async fn step<S, F, E>(&mut self, mut state: State<S>) -> Option<(Result<AnswerEvent, AnswerError<E>>, State<S>)>
    where
        S: FnOnce(Wanted) -> F,
        F: Future<Output = Result<Retrieved, E>>,
    {
        loop {
            match state {
                State::Embed(search) => {
                    let got = self.question.text.len();
                    if got == 0 || got > Answerer::QUESTION_BYTES_MAX {
                        return Some((Err(AnswerError::Question { got }), State::Ended));
                    }
                    let vectors = self.answerer.embedder.embed(&[&self.question.text]).await;
                    return Some(match vectors {
                        Ok(mut vectors) => {
                            (Ok(self.stage("embed")), State::Search(search, vectors.pop().unwrap_or_default()))
                        }
                        Err(error) => (Err(AnswerError::Embed(error)), State::Ended),
                    });
                }
                State::Search(search, vector) => {
                    let limit = self.answerer.budget.passages.saturating_mul(Answerer::FOUND_PER_PASSAGE);
                    return Some(match search(Wanted { vector, limit }).await {
                        Ok(retrieved) => (Ok(self.stage("search")), State::Pack(retrieved)),
                        Err(error) => (Err(AnswerError::Search(error)), State::Ended),
                    });
                }
                State::Pack(Retrieved { hits, coverage }) => {
                    let field = &self.answerer.text_field;
                    let ranked = hits.iter().filter_map(|hit| Passage::from_hit(hit, field)).collect();
                    let passages = pack(by_words(&self.question.text, ranked), self.answerer.budget);
                    let citations = Citations::new(u32::try_from(passages.len()).unwrap_or(u32::MAX));
                    let Question { text: question, turns, sampling } = std::mem::take(&mut self.question);
                    let request = GenerateRequest { question, passages: passages.clone(), turns, sampling };
                    let text = self.answerer.generator.generate(request);
                    let event = AnswerEvent::Passages { passages, coverage };
                    return Some((Ok(event), State::Generate(text, citations)));
                }
                State::Generate(mut text, mut citations) => {
                    let (ready, next) = match text.next().await {
                        Some(Ok(Generated::Finished(finish))) => {
                            self.finish = finish;
                            (citations.finish(), State::Complete(citations))
                        }
                        Some(Ok(Generated::Text(piece))) => {
                            let ready = citations.push(&piece);
                            (ready, State::Generate(text, citations))
                        }
                        Some(Err(error)) => return Some((Err(AnswerError::Generate(error)), State::Ended)),
                        None => {
                            let ready = citations.finish();
                            (ready, State::Complete(citations))
                        }
                    };
                    state = next;
                    if !ready.text.is_empty() {
                        let event = AnswerEvent::Delta { text: ready.text, citations: ready.citations };
                        return Some((Ok(event), state));
                    }
                }
                State::Complete(citations) => return Some((Ok(self.stage("generate")), State::Finish(citations))),
                State::Finish(citations) => {
                    let cited = citations.cited();
                    let generator = self.answerer.generator.name().to_owned();
                    let event =
                        AnswerEvent::Done { answered: !cited.is_empty(), cited, generator, finish: self.finish };
                    return Some((Ok(event), State::Ended));
                }
                State::Ended => return None,
            }
        }
    }

    fn stage(&mut self, name: &'static str) -> AnswerEvent {
        let elapsed = self.began.elapsed();
        self.began = Instant::now();
        AnswerEvent::Stage { name, elapsed }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::ids::Version;

    use super::*;
    use crate::embed::Static256;
    use crate::generate::Extractive;

    fn answerer() -> Answerer {
        let embedder = Static256::shared().unwrap();
        Answerer {
            generator: Arc::new(Extractive::new(embedder.clone())),
            embedder,
            text_field: "text".into(),
            budget: Budget::default(),
        }
    }

    fn hit(id: &str, text: &str) -> Hit {
        Hit {
            id: id.into(),
            score: 0.9,
            version: Version { epoch: 1, index: 1 },
            payload_json: serde_json::json!({ "text": text }).to_string().into(),
            vectors: Default::default(),
        }
    }

    async fn run(question: &str, found: Result<Vec<Hit>, String>) -> Vec<Result<AnswerEvent, AnswerError<String>>> {
        let search = |wanted: Wanted| async move {
            assert_eq!((wanted.vector.len(), wanted.limit), (256, 30));
            found.map(|hits| Retrieved { hits, coverage: Coverage::default() })
        };
        answerer().answer(question.into(), search).collect().await
    }

    fn names(events: &[Result<AnswerEvent, AnswerError<String>>]) -> Vec<&'static str> {
        let name = |event: &Result<AnswerEvent, AnswerError<String>>| match event {
            Ok(AnswerEvent::Stage { name, .. }) => *name,
            Ok(AnswerEvent::Passages { .. }) => "passages",
            Ok(AnswerEvent::Delta { .. }) => "delta",
            Ok(AnswerEvent::Done { .. }) => "done",
            Err(_) => "error",
        };
        events.iter().map(name).collect()
    }

    #[tokio::test]
    async fn an_answer_comes_as_stages_passages_text_and_end() {
        let hits = vec![hit("ants#0000", "The queen ant lays all the eggs of the colony.")];
        let events = run("Which ant lays the eggs?", Ok(hits)).await;
        assert_eq!(names(&events), ["embed", "search", "passages", "delta", "generate", "done"]);
        let text = "The queen ant lays all the eggs of the colony. [1]".to_owned();
        assert_eq!(events[3], Ok(AnswerEvent::Delta { text, citations: vec![1] }));
        let finish = Finish::Complete;
        let done = AnswerEvent::Done { cited: vec![1], answered: true, generator: "extractive".into(), finish };
        assert_eq!(events[5], Ok(done));
    }

    #[tokio::test]
    async fn nothing_found_is_said_and_not_called_an_answer() {
        let events = run("Which ant lays the eggs?", Ok(vec![])).await;
        assert_eq!(names(&events), ["embed", "search", "passages", "delta", "generate", "done"]);
        assert!(matches!(events.last(), Some(Ok(AnswerEvent::Done { answered: false, .. }))));
    }

    #[tokio::test]
    async fn an_error_is_the_last_event() {
        let events = run("Which ant lays the eggs?", Err("two shards are silent".into())).await;
        assert_eq!(names(&events), ["embed", "error"]);
        assert_eq!(events[1], Err(AnswerError::Search("two shards are silent".into())));
        assert_eq!(run("  ", Ok(vec![])).await, [Err(AnswerError::Question { got: 0 })]);
    }
}
