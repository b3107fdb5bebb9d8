//! Retrieval quality of the built-in embedder on the Cranfield collection: exact cosine over whole documents.
//!
//! ```text
//! cargo run -p nearring-router --example cranfield -- DIR
//! ```
//!
//! DIR holds `corpus.jsonl`, `queries.jsonl` (objects with `id` and `text`) and `qrels.tsv` (query, document, grade under
//! a head line). Prints nDCG@10 with gain 2^grade − 1, grades of 0 and less dropped, averaged over the judged questions.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use nearring_router::embed::Static256;

#[derive(serde::Deserialize)]
struct Text {
    id: String,
    text: String,
}

/// Id and vector.
type Embedded = Vec<(String, Vec<f32>)>;
type Grades = BTreeMap<String, BTreeMap<String, i32>>;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("name the folder of the Cranfield collection")?;
    let folder = Path::new(&folder);
    let embedder = Static256::shared()?;
    let documents = embedded(&embedder, &read(folder, "corpus.jsonl")?)?;
    let questions = embedded(&embedder, &read(folder, "queries.jsonl")?)?;
    let grades = grades(&read(folder, "qrels.tsv")?)?;

    let (mut sum, mut judged) = (0.0, 0_u32);
    for (question, vector) in &questions {
        let Some(grades) = grades.get(question) else { continue };
        let dot = |v: &[f32]| v.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        let mut ranked: Vec<(f32, &str)> = documents.iter().map(|(id, v)| (dot(v), id.as_str())).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        sum += ndcg(ranked.iter().take(10).map(|(_, id)| grades.get(*id).copied().unwrap_or(0)), grades);
        judged += 1;
    }
    if judged == 0 {
        return Err("qrels.tsv judges none of the questions".into());
    }
    println!("{} documents, {judged} questions: nDCG@10 {:.3}", documents.len(), sum / f64::from(judged));
    Ok(())
}

fn ndcg(found: impl Iterator<Item = i32>, grades: &BTreeMap<String, i32>) -> f64 {
    let mut best: Vec<i32> = grades.values().copied().collect();
    best.sort_unstable_by(|a, b| b.cmp(a));
    gain(found) / gain(best.into_iter().take(10))
}

fn gain(grades: impl Iterator<Item = i32>) -> f64 {
    (2_u32..).zip(grades).map(|(place, grade)| (f64::from(grade).exp2() - 1.0) / f64::from(place).log2()).sum()
}

/// Every text that has a vector (the collection holds empty abstracts).
fn embedded(embedder: &Static256, lines: &str) -> Result<Embedded, Box<dyn Error>> {
    let mut all = Vec::new();
    for line in lines.lines() {
        let Text { id, text } = serde_json::from_str(line)?;
        all.extend(embedder.embed_one(&text)?.map(|vector| (id, vector)));
    }
    Ok(all)
}

fn grades(lines: &str) -> Result<Grades, Box<dyn Error>> {
    let mut grades = Grades::new();
    for line in lines.lines().skip(1) {
        let mut fields = line.split('\t').map(str::trim);
        let (Some(question), Some(document), Some(grade)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(format!("qrels.tsv: `{line}` has fewer than three fields").into());
        };
        let grade: i32 = grade.parse()?;
        if grade > 0 {
            grades.entry(question.to_owned()).or_default().insert(document.to_owned(), grade);
        }
    }
    Ok(grades)
}

fn read(folder: &Path, name: &str) -> Result<String, Box<dyn Error>> {
    let path = folder.join(name);
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()).into())
}
