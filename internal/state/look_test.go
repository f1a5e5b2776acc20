// SPDX-License-Identifier: Apache-2.0

package state

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestInspect checks that Inspect returns what Identity would, at each stage of a directory, and
// changes nothing.
func TestInspect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	look := func(machineID string) Inspection {
		t.Helper()
		seen, err := Inspect(path, machineID)
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	if got, want := look("m"), (Inspection{Origin: Made}); got != want {
		t.Errorf("before the first start: got %+v, want %+v", got, want)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Inspect made the directory: %v", err)
	}

	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := d.Identity("m", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := look("m"), (Inspection{Locked: true, Origin: Loaded, ID: id.ID()}); got != want {
		t.Errorf("while it is open: got %+v, want %+v", got, want)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := look("m"), (Inspection{Origin: Loaded, ID: id.ID()}); got != want {
		t.Errorf("closed: got %+v, want %+v", got, want)
	}
	if got, want := look("other"), (Inspection{Origin: Cloned, ID: id.ID()}); got != want {
		t.Errorf("on another machine: got %+v, want %+v", got, want)
	}
	if got := look("m"); got.Origin != Loaded {
		t.Errorf("Inspect renamed the identity: got %+v", got)
	}
	for _, name := range []string{IdentityFile, NodeFile} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("{"), fileMode); err != nil {
			t.Fatal(err)
		}
		if _, err := Inspect(path, "m"); !errors.Is(err, ErrDamaged) {
			t.Errorf("damaged %s: got %v, want ErrDamaged", name, err)
		}
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	for content, want := range map[string]error{
		"{":                nil,      // damaged
		"\xa1\x01\x18\x63": ErrNewer, // version 99
	} {
		if err := os.WriteFile(filepath.Join(path, ObjectsFile), []byte(content), fileMode); err != nil {
			t.Fatal(err)
		}
		if _, err := Inspect(path, "m"); !errors.Is(err, want) {
			t.Errorf("%s is %q: got %v, want %v", ObjectsFile, content, err, want)
		}
	}
}
