// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package lab_test

import (
	"testing"

	"github.com/meshd/meshd/test/lab"
)

func TestImpair(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.NAT), newHost(ctx, t, l, "b", lab.NAT)
	if err := b.Impair(ctx, "loss 100%"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, a, b.Public(), 1); err == nil {
		t.Error("a host answers although it loses all packets")
	}
	if err := b.Impair(ctx, "delay 1ms"); err != nil {
		t.Fatal(err)
	}
	if err := answers(ctx, a, b.Public(), 20); err != nil {
		t.Error(err)
	}
}
