// SPDX-License-Identifier: Apache-2.0

// Package vagrant holds a Vagrantfile; its Go files are tests of it alone.
package vagrant

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// copyTo makes a directory with a Vagrantfile beside a dist with the package
// that it looks for.
func copyTo(t *testing.T, vagrantfile string) (dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "vagrant")
	for path, content := range map[string]string{
		filepath.Join(dir, "Vagrantfile"):                            vagrantfile,
		filepath.Join(root, "dist", "meshd_1.0.0-1_"+arch(t)+".deb"): "",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func arch(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// validate runs vagrant validate. It makes no machine.
func validate(t *testing.T, dir string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("vagrant", "validate")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VAGRANT_HOME="+filepath.Join(dir, "home"), "VAGRANT_CHECKPOINT_DISABLE=1")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func read(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("Vagrantfile")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestValid(t *testing.T) {
	dir := copyTo(t, read(t))
	for _, env := range []string{"K3S=0", "K3S=1", "QEMU=1", "BOX=local/debian"} {
		if out, err := validate(t, dir, env); err != nil {
			t.Errorf("with %s: %v\n%s", env, err, out)
		}
	}
}

func TestMistakesAreFound(t *testing.T) {
	for _, mistake := range [][2]string{{"libvirt.cpus", "libvirt.cups"}, {"vm.hostname", "vm.hostnam"}, {"end\nend\n", "end\n"}} {
		changed := strings.Replace(read(t), mistake[0], mistake[1], 1)
		if out, err := validate(t, copyTo(t, changed)); err == nil {
			t.Errorf("%q in place of %q is valid: %s", mistake[1], mistake[0], out)
		}
	}
}

func TestAsksForThePackage(t *testing.T) {
	dir := copyTo(t, read(t))
	if err := os.RemoveAll(filepath.Join(dir, "../dist")); err != nil {
		t.Fatal(err)
	}
	if out, err := validate(t, dir); err == nil || !strings.Contains(out, "make deb") {
		t.Errorf("without a package: got %v: %s; want it to ask for make deb", err, out)
	}
}
