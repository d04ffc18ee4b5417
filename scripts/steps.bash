# Sourced by scripts/check and scripts/test: runs their steps, and prints a table of the times that
# they took when the script ends, also if a step has failed.

steps=()
step=

# Runs a command as a step: run NAME COMMAND…
run() {
    step=$1
    step_began=$SECONDS
    shift
    "$@"
    steps+=("$step|$((SECONDS - step_began))")
    step=
}

minutes() {
    printf '%3d:%02d' $(($1 / 60)) $(($1 % 60))
}

print_steps() {
    local status=$? row
    {
        echo
        for row in "${steps[@]}"; do
            printf '%-34s %s\n' "${row%|*}" "$(minutes "${row##*|}")"
        done
        [ -z "$step" ] || printf '%-34s %s failed\n' "$step" "$(minutes $((SECONDS - step_began)))"
        printf '%-34s %s\n' total "$(minutes $SECONDS)"
    } >&2
    return $status
}
trap print_steps EXIT
