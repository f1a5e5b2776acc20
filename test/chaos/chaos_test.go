// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	os.Exit(m.Run())
}

// TestChaos runs three minutes of those faults for which the kernel needs nothing that it
// may lack.
func TestChaos(t *testing.T) {
	if err := chaos(t.Context(), os.Getenv("MESHD"), 3*time.Minute, options{seed: 1}); err != nil {
		t.Fatal(err)
	}
}
