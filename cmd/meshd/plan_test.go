// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
)

func TestPrintPlan(t *testing.T) {
	for _, tt := range []struct {
		plan control.Plan
		want string
	}{
		{control.Plan{}, "Nothing to change.\n"},
		{control.Plan{Quorum: "etcd loses its quorum"}, "etcd loses its quorum\nNothing to change.\n"},
		{control.Plan{Routes: []string{"route"}, Changes: []string{"change"}, Quorum: "etcd loses its quorum"}, "etcd loses its quorum\nroute\nchange\n"},
	} {
		var b strings.Builder
		if err := printPlan(&b, tt.plan); err != nil || b.String() != tt.want {
			t.Errorf("%+v: got %q, %v, want %q", tt.plan, b.String(), err, tt.want)
		}
	}
}
