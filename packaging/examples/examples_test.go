// SPDX-License-Identifier: Apache-2.0

// Package examples holds examples for tools that set up hosts; its Go files are tests of
// them alone.
package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	inventory = "ansible/inventory.yaml"
	playbook  = "ansible/playbook.yaml"
)

// run runs a program and returns what it printed. Ansible keeps its files in home.
func run(t *testing.T, home, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_LOCALHOST_WARNING=0", "PATH="+home+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func must(t *testing.T, home, name string, args ...string) string {
	t.Helper()
	out, err := run(t, home, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestAnsibleLint(t *testing.T) {
	home := t.TempDir()
	must(t, home, "ansible-playbook", "-i", inventory, "--syntax-check", playbook)
	must(t, home, "ansible-lint", "--offline", "--strict", "--profile", "production", playbook, inventory)
}

// standIn takes meshd's place on all hosts, which are this one. It has the real meshd look
// at the command line, and writes down what it was asked for. gcp-1 does not join if the
// file refuse is there.
const standIn = `#!/bin/sh
cd "$(dirname "$0")" || exit
./real "$@" --help >help || exit
input=
case "$*" in *' -') input=" <$(cat)" ;; esac
echo "$*$input" >>log
case "$*" in
token) echo secret-token ;;
join*gcp-1*) test ! -e refuse || { echo 'meshd: nobody has answered' >&2; exit 1; } ;;
esac
`

// TestPlaybook plays the playbook without the package.
func TestPlaybook(t *testing.T) {
	home := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(home, "real"), "../../cmd/meshd").CombinedOutput(); err != nil {
		t.Fatalf("build meshd: %v\n%s", err, out)
	}
	write(t, filepath.Join(home, "meshd"), standIn, 0o755)
	play := func(hosts string) (string, error) {
		t.Helper()
		return run(t, home, "ansible-playbook", "-i", inventory, "--limit", hosts, "-e", "ansible_connection=local", "-e", "ansible_become=false", "--skip-tags", "package", playbook)
	}

	out, err := play("all")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	log, err := os.ReadFile(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(got) > 5 {
		slices.Sort(got[2:5]) // these join at the same time
	}
	const wait = "status --wait --timeout 2m"
	want := []string{
		"init --name aws-1 --set cluster.mode=location",
		"token",
		"join --name gcp-1 - <secret-token",
		"join --name office-1 --location office - <secret-token",
		"join --name office-2 --location office - <secret-token",
		wait, wait, wait, wait,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got):\n%s\n%s", diff, out)
	}
	if strings.Contains(out, "secret-token") {
		t.Errorf("ansible-playbook shows the token:\n%s", out)
	}

	write(t, filepath.Join(home, "refuse"), "", 0o644)
	out, err = play("aws-1,gcp-1")
	if err == nil || !strings.Contains(out, "nobody has answered") || strings.Contains(out, "secret-token") {
		t.Errorf("a host does not join: got %v, want the cause without the token:\n%s", err, out)
	}
}

// validate checks user data against cloud-init's own schema, and the shell's part of it
// with sh.
const validate = `
import json, subprocess, sys, jsonschema, yaml
schema, path = sys.argv[1:]
with open(schema) as f: schema = json.load(f)
with open(path) as f: text = f.read()
assert text.startswith("#cloud-config\n"), "it does not begin with #cloud-config"
data = yaml.safe_load(text)
jsonschema.Draft4Validator(schema).validate(data)
subprocess.run(["sh", "-n"], input="\n".join(data["runcmd"]), text=True, check=True)
`

// TestCloudInit has the schema of Debian's package, which test/setup.sh puts into bin.
func TestCloudInit(t *testing.T) {
	dir := t.TempDir()
	const schema = "../../bin/cloud-init-schema.json"
	if _, err := os.Stat(schema); err != nil {
		t.Fatalf("%v: run test/setup.sh cloud-init-schema.json", err)
	}
	must(t, dir, "/usr/bin/python3", "-c", validate, schema, "cloud-init.yaml")

	data, err := os.ReadFile("cloud-init.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, mistake := range [][2]string{{"permissions:", "permission:"}, {"done", "end"}} {
		wrong := filepath.Join(dir, "wrong.yaml")
		write(t, wrong, strings.Replace(string(data), mistake[0], mistake[1], 1), 0o644)
		if out, err := run(t, dir, "/usr/bin/python3", "-c", validate, schema, wrong); err == nil {
			t.Errorf("%s in the place of %s: got no error, want one: %s", mistake[1], mistake[0], out)
		}
	}
}
