filigree_test(config_test LABEL quick
  SOURCES config_test.cc config_problems_test.cc config_prepared_test.cc schedule_test.cc
  DEPS filigree_config filigree_data)
filigree_test(metrics_test LABEL quick SOURCES metrics_test.cc metrics_report_test.cc
  DEPS filigree_metrics filigree_report nlohmann_json::nlohmann_json)
