"""int8: Q/DQ insertion, and the search for layers that stay float32."""
