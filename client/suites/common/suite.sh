# What every suite's `run` begins with. Set before: `suite` (its name) and `here` (its folder).
# Sets `root`, `target` (cargo's output) and, unless NEARRING names a program, builds one.
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
if [ -z "${NEARRING:-}" ]; then
    (cd "$root" && cargo build --release --locked --package nearring-client --features cli --bin nearring)
    NEARRING=$target/release/nearring
fi
export NEARRING

# Makes the suite's virtual environment beside cargo's output.
python_packages() {
    venv=$target/suites/$suite
    [ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
}

# Runs a command beside a cluster of its own; `QDRANT_URL` is its address.
beside_cluster() {
    python3 "$root/client/suites/common/cluster.py" "$@"
}

# Runs the suite's tests beside a cluster. The last line is pytest's: how many passed.
pytest_beside_cluster() {
    PYTHONDONTWRITEBYTECODE=1 beside_cluster "$venv/bin/pytest" -q -p no:cacheprovider -o asyncio_mode=auto \
        -o asyncio_default_fixture_loop_scope=function --rootdir "$here" "$here" "$@"
}
