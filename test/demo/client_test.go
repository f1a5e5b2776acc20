// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestClient runs the demo with a laptop. The kernel lab has no dnsmasq.
func TestClient(t *testing.T) {
	leavesNothing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	wireguardGo := filepath.Join(t.TempDir(), "wireguard-go")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", wireguardGo, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		t.Fatalf("build wireguard-go: %v: %s", err, out)
	}
	cmd := demoCommand(ctx, t, "-client", "-wireguard-go", wireguardGo)
	if err := endsWith(cmd, "demo: ok, 12 of 12 node pairs, 12 of 12 pod pairs, client 4 of 4 pods, 1 of 1 Services, 1 of 1 names"); err != nil {
		t.Error(err)
	}
}
