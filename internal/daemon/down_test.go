// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/state"
)

// A daemon whose control socket somebody deleted runs all the same.
func TestDownRefusesWithoutSocket(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "meshd.yaml")
	text := "secret-file: /etc/meshd/secret\nwireguard: {interface: nobodys}\ncni: {enabled: false}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := state.Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Down(t.Context(), Options{Config: config, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run")})
	if !errors.Is(err, control.ErrRefused) {
		t.Errorf("got %v, want %v", err, control.ErrRefused)
	}
	if err := running.Close(); err != nil {
		t.Error(err)
	}
}
