// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// deriveBenchmarks are benchmarks of mesh.Derive, which know what a large
// cluster looks like, with the figures that they give: time and, if it is
// wanted, memory.
var deriveBenchmarks = []struct {
	name         string
	time, memory string
	nanoseconds  float64 // in the unit of time
}{
	{name: "BenchmarkDeriveFull1000", time: "derive_full_1000_us", nanoseconds: 1e3},
	{name: "BenchmarkDeriveLocation10000/gateway", time: "derive_location_10000_ms", memory: "derive_location_10000_mb", nanoseconds: 1e6},
	{name: "BenchmarkDeriveLocation10000/member", time: "derive_location_10000_member_ms", nanoseconds: 1e6},
}

func measureDerive(ctx context.Context, _ string, s samples) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkDerive", "-count", strconv.Itoa(runs), "./internal/mesh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("run the benchmarks of Derive: %w: %s", err, out)
	}
	for _, b := range deriveBenchmarks {
		found := 0
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line) // BenchmarkX-2 500 2412345 ns/op 4096 B/op …
			if len(f) < 6 || f[0] != b.name && !strings.HasPrefix(f[0], b.name+"-") || f[3] != "ns/op" || f[5] != "B/op" {
				continue
			}
			ns, err := strconv.ParseFloat(f[2], 64)
			if err != nil {
				return fmt.Errorf("read the result of %s: %w", b.name, err)
			}
			bytes, err := strconv.ParseFloat(f[4], 64)
			if err != nil {
				return fmt.Errorf("read the memory of %s: %w", b.name, err)
			}
			s.add(b.time, ns/b.nanoseconds)
			if b.memory != "" {
				s.add(b.memory, bytes/1e6)
			}
			found++
		}
		if found != runs {
			return fmt.Errorf("run %s: got %d results, want %d", b.name, found, runs)
		}
	}
	return nil
}
